"""TensorBoard event files, written in the calling thread."""

import contextlib
import os
import pathlib
import platform
import time
import warnings
from collections.abc import Mapping

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from maml_jax.utils.files import oserror_message

__all__ = ['TensorBoardWriter']

FLUSH_SECONDS = 30.0


class TensorBoardWriter:
  """Writes scalars for TensorBoard.

  Unlike `tensorboardX.SummaryWriter`, it uses no background thread: on a full
  disk, that thread ends and the next `add_scalar` blocks forever. If a file
  cannot be written, it warns once and the run continues without TensorBoard.

  Args:
    folder: created if missing.
    step: events of this and later steps from an earlier run are discarded.
  """

  def __init__(self, folder: pathlib.Path, step: int):
    self._folder, self._writer, self._flushed = folder, None, 0.0
    name = f'events.out.tfevents.{time.time():.0f}.{platform.node()}'
    with self._warn_on_error():
      folder.mkdir(parents=True, exist_ok=True)
      self._writer = RecordWriter(str(folder / f'{name}.{os.getpid()}'))
    start = SessionLog(status=SessionLog.START)
    self._add(Event(file_version='brain.Event:2'))
    self._add(Event(step=step, session_log=start))

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Adds scalars by name; they are flushed every `FLUSH_SECONDS`."""
    for name, value in values.items():
      self._add(Event(step=step, summary=scalar(name, value)))
    if self._writer and time.monotonic() - self._flushed > FLUSH_SECONDS:
      with self._warn_on_error():
        self._writer.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    """Flushes and closes the file, ignoring errors."""
    if self._writer:
      with contextlib.suppress(OSError):
        self._writer.close()

  def _add(self, event: Event) -> None:
    if self._writer:
      event.wall_time = time.time()
      with self._warn_on_error():
        self._writer.write(event.SerializeToString())

  @contextlib.contextmanager
  def _warn_on_error(self):
    try:
      yield
    except OSError as error:
      writer, self._writer = self._writer, None
      warnings.warn(
        f'cannot write {self._folder}: {oserror_message(error)}; continuing '
        'without TensorBoard',
        stacklevel=4,
      )
      if writer:
        with contextlib.suppress(OSError):
          writer.close()
