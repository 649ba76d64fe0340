"""Graceful stops on Ctrl-C and SIGTERM."""

import os
import signal
import sys
import threading

from jax.experimental import multihost_utils

from maml_jax.utils import distributed

__all__ = ['StopSignal']


class StopSignal:
  """Records Ctrl-C and SIGTERM instead of exiting; true once one was received.

  A second Ctrl-C exits immediately. A thread takes care of that, because the
  main thread may be waiting for the device, where Python handles no signals.
  Outside the main thread no signal is intercepted.

  With several processes, all of them must check the value at the same points.
  SIGTERM is then left to JAX's preemption service, which makes all processes
  stop at the same check; Ctrl-C is forwarded to it.
  """

  def __init__(self):
    self.signal = None
    self._num_checks = 0

  def __bool__(self) -> bool:
    if self.signal is None and distributed.is_multiprocess():
      self._num_checks += 1
      if multihost_utils.reached_preemption_sync_point(self._num_checks):
        self.signal = signal.SIGTERM
    return self.signal is not None

  @property
  def status(self) -> int:
    """The exit status that shells use for the signal; 0 if there was none."""
    return 0 if self.signal is None else 128 + self.signal

  def __enter__(self):
    self._active = threading.current_thread() is threading.main_thread()
    self._multiprocess = distributed.is_multiprocess()
    signals = [signal.SIGINT]
    if not self._multiprocess:
      signals.append(signal.SIGTERM)
    if self._active:
      reader, self._writer = os.pipe()
      os.set_blocking(self._writer, False)
      self._old_fd = signal.set_wakeup_fd(self._writer)
      self._old = {s: signal.signal(s, lambda *_: None) for s in signals}
      threading.Thread(target=self._watch, args=[reader], daemon=True).start()
    return self

  def __exit__(self, *_):
    if self._active:
      for number, handler in self._old.items():
        signal.signal(number, handler)
      if self._multiprocess:  # the preemption service is no longer checked
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
            f'\n{number.name}: saving after the current call; press Ctrl-C '
            'again to exit immediately',
            file=sys.stderr,
            flush=True,
          )
          if self._multiprocess:
            os.kill(os.getpid(), signal.SIGTERM)
          else:
            self.signal = number
        first = False
