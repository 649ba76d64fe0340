"""The directory and the process of a run: lock, config, signals."""

import contextlib
import fcntl
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Collection

from ml_collections import ConfigDict

from maml_jax import config as config_lib
from maml_jax.errors import UserError

# What may change when a run goes on: it does not change the run's course.
MAY_DIFFER = (
    'data.placement',
    'data.root',
    'eval',
    'inner.mixed_mode',
    'inner.remat',
    'train.chunk',
    'train.num_epochs',
    'train.steps_per_call',
)


@contextlib.contextmanager
def claim(workdir: pathlib.Path, config: ConfigDict):
  """Holds a workdir for one process and one config.

  The kernel gives the lock back however the process ends.

  Args:
    workdir: made if missing.
    config: written beside the run.

  Raises:
    UserError: another process trains there, another config did and has left a
      checkpoint, or it cannot be written to.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = open(workdir / 'lock', 'a')
  except OSError as error:
    raise UserError(f'cannot write to {workdir}: {error.strerror}') from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(f'another process is training in {workdir}') from None
    file = workdir / 'config.json'
    begun = any((workdir / 'checkpoints').glob('*/*'))
    if begun and file.exists():
      old = config_lib.from_json(file.read_text())
      check_same(old, config, workdir, MAY_DIFFER)
    write_text(file, config_lib.to_json(config))
    yield


def check_same(
    old: ConfigDict, new: ConfigDict, where, ignore: Collection[str]
) -> None:
  """Raises UserError, naming the fields, if two configs differ.

  Args:
    old: the config of what lies there.
    new: the config given now.
    where: a path, for the message.
    ignore: fields and sections that may differ.
  """
  differences = config_lib.config_differences(old, new, ignore)
  if differences:
    raise UserError(
        f'{where} is of another config: {"; ".join(differences)}. Take another '
        '--workdir or --tag, or the config of that run'
    )


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file such that a reader finds the old or the new one, whole."""
  new = path.with_name(path.name + '.new')
  new.write_text(text)
  os.replace(new, path)


class Stop:
  """Takes note of Ctrl-C and SIGTERM instead of dying; true once one has come.

  A second Ctrl-C ends the process at once. A thread sees to that: the main one
  may be waiting for the device, where Python handles no signals. Outside the
  main thread nothing is changed.
  """

  SIGNALS = (signal.SIGINT, signal.SIGTERM)

  def __init__(self):
    self.signal = None

  def __bool__(self) -> bool:
    return self.signal is not None

  @property
  def status(self) -> int:
    """The exit status that shells give to a signal; 0 if none has come."""
    return 128 + self.signal if self else 0

  def __enter__(self):
    self._active = threading.current_thread() is threading.main_thread()
    if self._active:
      reader, self._writer = os.pipe()
      os.set_blocking(self._writer, False)
      self._old_fd = signal.set_wakeup_fd(self._writer)
      self._old = [signal.signal(s, lambda *_: None) for s in self.SIGNALS]
      threading.Thread(target=self._watch, args=[reader], daemon=True).start()
    return self

  def __exit__(self, *_):
    if self._active:
      for number, handler in zip(self.SIGNALS, self._old, strict=True):
        signal.signal(number, handler)
      signal.set_wakeup_fd(self._old_fd)
      os.close(self._writer)

  def _watch(self, reader: int) -> None:
    with open(reader, 'rb', buffering=0) as pipe:
      while received := pipe.read(1):
        number = signal.Signals(received[0])
        if self and number == signal.SIGINT:
          os._exit(self.status)
        if number in self.SIGNALS and not self:
          self.signal = number
          print(
              f'\n{number.name}: finishing the running call, then saving; '
              'Ctrl-C once more leaves at once',
              file=sys.stderr,
              flush=True,
          )
