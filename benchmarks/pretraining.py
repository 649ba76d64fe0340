"""Times pre-training in maml_jax and in eager PyTorch in turn.

  python -m benchmarks.pretraining [--python PYTHON]

PYTHON is an interpreter with PyTorch; default this one. An iteration trains
ConvNet4 with 64 filters and a cosine head on 128 images of 84 x 84 pixels and
64 classes, by SGD with momentum, as preset mini_pretrain does. The images are
fixed: none are drawn or augmented. Batch norm uses 32 images at a time in
maml_jax and all of them in PyTorch. Prints images per second, as JSON.
"""

import argparse
import json
import statistics
import sys

from benchmarks.compare import start_workers, time_rounds
from benchmarks.timing import median_and_range
from benchmarks.workload import BATCH
from maml_jax.utils.errors import UserError


def main(argv=None) -> int:
  """Times both in turn and prints images a second."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--python', default=sys.executable, help='an interpreter with PyTorch')
  add('--pairs', type=int, default=7, help='number of rounds; default 7')
  add('--precision', default='float32', choices=['float32', 'tf32'])
  args = parser.parse_args(argv)
  interpreters = {'maml_jax': sys.executable, 'pytorch': args.python}
  commands = {
    name: [python, name, 'pretrain', args.precision]
    for name, python in interpreters.items()
  }
  workers, description = start_workers(commands, huge_pages=False)
  try:
    rounds = time_rounds(workers, args.pairs)
  finally:
    for worker in workers.values():
      worker.close()
  row = dict(description)
  for name in workers:
    rates = [BATCH / times[name] for times in rounds]
    row |= median_and_range(f'{name}_images_per_second', rates)
  if 'pytorch' in workers:
    ratios = [times['pytorch'] / times['maml_jax'] for times in rounds]
    row['ratio'] = statistics.median(ratios)
    row |= {'ratio_min': min(ratios), 'ratio_max': max(ratios)}
  print(json.dumps(row))
  return 0 if len(workers) == 2 else 1


if __name__ == '__main__':
  try:
    sys.exit(main())
  except UserError as error:
    sys.exit(f'error: {error}')
  except KeyboardInterrupt:
    sys.exit(130)
