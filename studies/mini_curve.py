"""Draws the training on mini-ImageNet beside published numbers.

  python -m studies.mini_curve METRICS [--output FILE]

METRICS is the metrics.jsonl of a run of preset mini_5w1s.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

# Validation accuracy of PyTorch-MAML by meta-iteration, from its training log:
# setting `reproduce`, 800 tasks, Q=15.
PYTORCH_MAML = {200: 0.314, 1000: 0.366, 1600: 0.381, 2400: 0.389}


def main(argv: Sequence[str]) -> int:
  """Draws the figure."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n', 1)[0])
  parser.add_argument('metrics', type=pathlib.Path)
  parser.add_argument(
    '--output', type=pathlib.Path, default=pathlib.Path('mini_curve.png')
  )
  args = parser.parse_args(argv)
  rows = map(json.loads, args.metrics.read_text().splitlines())
  rows = [row for row in rows if row['split'] == 'val']
  steps = [row['step'] for row in rows]
  accuracy = [row['accuracy'] for row in rows]
  low = [row['accuracy'] - row['interval'] for row in rows]
  high = [row['accuracy'] + row['interval'] for row in rows]
  figure = Figure(figsize=(7, 3.6), dpi=110, layout='constrained')
  axes = figure.subplots()
  axes.fill_between(steps, low, high, alpha=0.2, linewidth=0)
  axes.plot(steps, accuracy, label='maml_jax, with 95 % interval over tasks')
  axes.plot(
    *zip(*PYTORCH_MAML.items(), strict=True),
    'o',
    color='black',
    label='PyTorch-MAML, published training log',
  )
  axes.set_xlabel('meta-iteration')
  axes.set_ylabel('validation accuracy, Q=15, K=5')
  axes.xaxis.set_major_formatter(StrMethodFormatter('{x:,.0f}'))
  axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
  axes.grid(alpha=0.3)
  axes.spines[['top', 'right']].set_visible(False)
  axes.legend(loc='lower right', frameon=False)
  figure.savefig(args.output)
  print(args.output)
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
