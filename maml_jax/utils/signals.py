"""Graceful stops on Ctrl-C and SIGTERM."""

import os
import signal
import sys
import threading

from maml_jax.utils import distributed

__all__ = ['StopSignal']


class StopSignal:
  """Records Ctrl-C and SIGTERM instead of exiting; true once one was received.

  A second Ctrl-C exits immediately. A thread takes care of that, because the
  main thread may be waiting for the device, where Python handles no signals.
  Outside the main thread no signal is intercepted.

  With several processes, all of them must check the value at the same points.
  A signal to any of them is then seen by all at the same check.
  """

  def __init__(self):
    self.signal = None
    self._received = 0
    self._agree = distributed.LaggedMax(0)

  def __bool__(self) -> bool:
    if self.signal is None:
      agreed = int(self._agree(self._received))
      self.signal = signal.Signals(agreed) if agreed else None
    return self.signal is not None

  @property
  def status(self) -> int:
    """The exit status that shells use for the signal; 0 if there was none."""
    return 0 if self.signal is None else 128 + self.signal

  def __enter__(self):
    self._active = threading.current_thread() is threading.main_thread()
    if self._active:
      reader, self._writer = os.pipe()
      os.set_blocking(self._writer, False)
      self._old_fd = signal.set_wakeup_fd(self._writer)
      self._old = {
        number: signal.signal(number, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGTERM)
      }
      threading.Thread(target=self._watch, args=[reader], daemon=True).start()
    return self

  def __exit__(self, *_):
    if self._active:
      for number, handler in self._old.items():
        signal.signal(number, handler)
      signal.set_wakeup_fd(self._old_fd)
      os.close(self._writer)

  def _watch(self, reader: int) -> None:
    with open(reader, 'rb', buffering=0) as pipe:
      while byte := pipe.read(1):
        number = signal.Signals(byte[0])
        if number not in self._old:
          continue
        if self._received:
          if number == signal.SIGINT:
            os._exit(128 + number)
          continue
        self._received = number
        print(
          f'\n{number.name}: saving after the current call; press Ctrl-C '
          'again to exit immediately',
          file=sys.stderr,
          flush=True,
        )
