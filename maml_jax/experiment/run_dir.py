"""The directory and the process of a run: lock, config, signals."""

import contextlib
import fcntl
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Collection

from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from maml_jax import config as config_lib
from maml_jax.utils import distributed
from maml_jax.utils.files import fsync, oserror_as_user_error
from maml_jax.utils.errors import UserError

# What may change when a run goes on: it does not change the run's course.
RESUME_IGNORED_FIELDS = (
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
def lock_run_dir(workdir: pathlib.Path, config: ConfigDict):
  """Holds a workdir for one run and one config.

  The kernel gives the lock back however the process ends. Of several processes
  of a run the first holds it for all.

  Args:
    workdir: made if missing.
    config: written beside the run.

  Raises:
    UserError: another process trains there, another config did and has left a
      checkpoint, or it cannot be written to.
  """
  with contextlib.ExitStack() as stack:
    distributed.on_main_process(lambda: _claim(workdir, config, stack))
    yield


def _claim(workdir, config, stack) -> None:
  """`claim` until `stack` is closed."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = stack.enter_context(open(workdir / 'lock', 'a'))
  except OSError as error:
    raise UserError(f'cannot write to {workdir}: {error.strerror}') from error
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise UserError(f'another process is training in {workdir}') from None
  begun = any((workdir / 'checkpoints').glob('*/*'))
  old = config_lib.read_saved(workdir) if begun else None
  if old:  # else every checkpoint tells its own config
    require_same_config(old, config, workdir, RESUME_IGNORED_FIELDS)
  write_text(workdir / 'config.json', config_lib.to_json(config))


def require_same_config(
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
  """Writes a file such that a reader finds the old or the new one, whole.

  That holds for a loss of power as well.

  Raises:
    UserError: it cannot be written.
  """
  new = path.with_name(path.name + '.new')
  with oserror_as_user_error(path):
    new.write_text(text)
    fsync(new)
    os.replace(new, path)


class StopSignal:
  """Takes note of Ctrl-C and SIGTERM instead of dying; true once one has come.

  A second Ctrl-C ends the process at once. A thread sees to that: the main one
  may be waiting for the device, where Python handles no signals. Outside the
  main thread nothing is changed.

  Of several processes all must ask in the same places. SIGTERM is left to
  JAX's preemption service, which tells all to stop where they ask for the same
  time; Ctrl-C is passed on to it.
  """

  def __init__(self):
    self.signal = None
    self._asked = 0

  def __bool__(self) -> bool:
    if self.signal is None and distributed.is_multiprocess():
      self._asked += 1
      if multihost_utils.reached_preemption_sync_point(self._asked):
        self.signal = signal.SIGTERM
    return self.signal is not None

  @property
  def status(self) -> int:
    """The exit status that shells give to a signal; 0 if none has come."""
    return 0 if self.signal is None else 128 + self.signal

  def __enter__(self):
    self._active = threading.current_thread() is threading.main_thread()
    self._several = distributed.is_multiprocess()
    caught = [signal.SIGINT] + ([] if self._several else [signal.SIGTERM])
    if self._active:
      reader, self._writer = os.pipe()
      os.set_blocking(self._writer, False)
      self._old_fd = signal.set_wakeup_fd(self._writer)
      self._old = {s: signal.signal(s, lambda *_: None) for s in caught}
      threading.Thread(target=self._watch, args=[reader], daemon=True).start()
    return self

  def __exit__(self, *_):
    if self._active:
      for number, handler in self._old.items():
        signal.signal(number, handler)
      if self._several:  # the preemption service has nobody to tell any more
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
      signal.set_wakeup_fd(self._old_fd)
      os.close(self._writer)

  def _watch(self, reader: int) -> None:
    with open(reader, 'rb', buffering=0) as pipe:
      first = True
      while received := pipe.read(1):
        number = signal.Signals(received[0])
        if number not in self._old:
          continue
        if not first and number == signal.SIGINT:
          os._exit(128 + number)
        if first:
          print(
              f'\n{number.name}: finishing the running call, then saving; '
              'Ctrl-C once more leaves at once',
              file=sys.stderr,
              flush=True,
          )
          if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
          else:
            self.signal = number
        first = False
