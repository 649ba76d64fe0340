"""One side of a comparison: a process that runs an iteration when told to.

  python -m benchmarks.worker SIDE WORKLOAD PRECISION [CHECKOUT]

It prints a JSON object that says what it is, or why it cannot run ('error'),
then the seconds of one iteration for every line that it reads. Started by
`benchmarks.compare`; imports the framework of its own side alone.
"""

import contextlib
import json
import sys
import time

from benchmarks.workload import COMPARED


def make_iteration(side, name, precision, checkout=''):
  """A function that runs one iteration and waits; and what it runs on."""
  work = COMPARED[name]
  if side == 'maml_jax':
    from benchmarks import with_jax
    from benchmarks.machine import machine

    iteration = with_jax.iteration(work, precision)
    return iteration, machine() | {'precision': precision}
  from benchmarks import with_learn2learn, with_pytorch_maml, with_torch

  with_torch.set_precision(precision)
  sides = {'pytorch_maml': with_pytorch_maml, 'learn2learn': with_learn2learn}
  return sides[side].iteration(work, checkout), with_torch.about()


def serve(out, *args):
  """Prints to `out` what it is, then times as long as there is input."""

  def say(line):
    print(line, file=out, flush=True)

  try:
    iteration, about = make_iteration(*args)
    iteration()
  except (ImportError, OSError) as error:
    return say(json.dumps({'error': f'{type(error).__name__}: {error}'}))
  say(json.dumps(about))
  for _ in sys.stdin:
    start = time.perf_counter()
    iteration()
    say(time.perf_counter() - start)


if __name__ == '__main__':
  out = sys.stdout
  with contextlib.redirect_stdout(sys.stderr):  # what a framework may print
    serve(out, *sys.argv[1:])
