"""A process that runs one workload in one library, an iteration per request.

  python -m benchmarks.worker LIBRARY WORKLOAD PRECISION [CHECKOUT]

It prints a JSON object that describes the library and the device, or an 'error'
if it cannot run. Then it runs one iteration for every line of stdin and prints
the seconds it took. Started by `benchmarks.compare`. It imports only the
framework of its own library.
"""

import contextlib
import importlib
import json
import sys
import time

from benchmarks.workload import COMPARED


def make_iteration(library, name, precision, checkout=''):
  """Returns a function that runs one iteration, and a description.

  Args:
    library: 'maml_jax', 'pytorch_maml', 'learn2learn' or 'pytorch'.
    name: a workload of `COMPARED`, or 'pretrain' (maml_jax and pytorch).
    precision: 'float32' or 'tf32'.
    checkout: the source tree of the library, unless it is maml_jax.
  """
  # Imported here because each interpreter has only one of the frameworks.
  if library == 'maml_jax':
    from benchmarks import with_jax
    from benchmarks.machine import describe_machine

    if name == 'pretrain':
      iteration = with_jax.make_pretraining_iteration(precision)
    else:
      iteration = with_jax.make_iteration(COMPARED[name], precision)
    return iteration, describe_machine() | {'precision': precision}
  from benchmarks import with_torch

  with_torch.set_precision(precision)
  if library == 'pytorch':
    iteration = with_torch.make_pretraining_iteration()
  else:
    module = importlib.import_module(f'benchmarks.with_{library}')
    iteration = module.make_iteration(COMPARED[name], checkout)
  return iteration, with_torch.describe_device()


def serve(out, *args):
  """Runs an iteration per line of stdin and prints its seconds to `out`.

  Args:
    out: a text stream.
    *args: the arguments of `make_iteration`.
  """

  def write(line):
    print(line, file=out, flush=True)

  try:
    iteration, description = make_iteration(*args)
    iteration()  # compile, and warm up
  except (ImportError, OSError) as error:
    return write(json.dumps({'error': f'{type(error).__name__}: {error}'}))
  write(json.dumps(description))
  for _ in sys.stdin:
    start = time.perf_counter()
    iteration()
    write(time.perf_counter() - start)


if __name__ == '__main__':
  out = sys.stdout
  with contextlib.redirect_stdout(sys.stderr):  # frameworks may print, too
    serve(out, *sys.argv[1:])
