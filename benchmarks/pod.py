"""Estimates the speed of meta-training on a TPU pod from compiled programs.

  python -m benchmarks.pod [--rows FILE]

Nothing here is measured on a TPU. The time and memory of a chip are those that
`benchmarks.aot_tables` has written: the train step of `main.py` as compiled for
one chip, and the compiler's own estimate of its duration, for the fastest
program of each encoder. Every chip of the pod processes as many tasks as in the
row. The ring all-reduce of the gradients is added, without overlap, at the
bandwidth of all links of a chip. The latency of the links, the host and its
input pipeline are ignored.
"""

import argparse
import pathlib
import sys

from benchmarks.aot_tables import ROWS, format_flags, load
from benchmarks.chips import CHIPS, Chip
from maml_jax.utils.errors import UserError

FLOAT_BYTES = 4  # of a float32
POD_SIZES = (1, 8, 64, 256)  # chips
# Flags that do not change what is computed, except for the encoder.
FLAGS = ('--inner.remat', '--model.encoder=', '--precision=')


def all_reduce_bytes(params: int, chips: int) -> float:
  """Returns the bytes each chip sends in a ring all-reduce of the gradients."""
  return 2 * (chips - 1) / chips * FLOAT_BYTES * params


def estimate_iteration(row: dict, chip: Chip, chips: int) -> dict[str, float]:
  """Estimates one meta-iteration of a pod.

  Args:
    row: of one chip, from `benchmarks.aot`: `ms`, `tasks` and `parameters`.
    chip: the speed of one chip.
    chips: number of chips.

  Returns:
    'seconds', 'tasks_per_second', 'sent_bytes' of each chip, and
    'all_reduce_share' of the time.
  """
  sent_bytes = all_reduce_bytes(row['parameters'], chips)
  all_reduce = sent_bytes / chip.link_bandwidth
  seconds = row['ms'] / 1e3 + all_reduce
  return {
    'seconds': seconds,
    'tasks_per_second': chips * row['tasks'] / seconds,
    'sent_bytes': sent_bytes,
    'all_reduce_share': all_reduce / seconds,
  }


def fastest_rows(rows: list[dict]) -> list[dict]:
  """Returns the fastest row of one chip for each kind of chip and encoder."""
  fastest = {}
  for row in rows:
    _, *flags = row['name'].split()
    if row['chips'] > 1 or not all(flag.startswith(FLAGS) for flag in flags):
      continue
    key = row['chip'], row['parameters']
    if 'ms' in row and row['ms'] <= fastest.get(key, row)['ms']:
      fastest[key] = row
  return list(fastest.values())


def markdown_table(rows: list[dict]) -> str:
  """Returns estimates as Markdown; time and all-reduce of the largest pod."""
  header = [
    'chip',
    'flags',
    'memory of a chip',
    'iteration',
    'tasks/s of 1 chip',
    *(f'of {chips} chips' for chips in POD_SIZES[1:]),
    'sent per chip',
    'all-reduce',
  ]
  lines = [f'| {" | ".join(header)} |', '|---' * len(header) + '|']
  for row in rows:
    estimates = [
      estimate_iteration(row, CHIPS[row['chip']], chips) for chips in POD_SIZES
    ]
    last = estimates[-1]
    cells = [
      row['chip'],
      format_flags(row),
      f'{row["peak_mb"] / 1e3:.2f} GB',
      f'{1e3 * last["seconds"]:.2f} ms',
      *(f'{x["tasks_per_second"]:,.0f}' for x in estimates),
      f'{last["sent_bytes"] / 1e6:.2f} MB',
      f'{last["all_reduce_share"]:.2%}',
    ]
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.pod',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    '--rows', type=pathlib.Path, default=ROWS, help='default: %(default)s'
  )
  args = parser.parse_args(argv)
  try:
    rows = load(args.rows)
  except UserError as error:
    parser.error(str(error))
  if not (fastest := fastest_rows(rows)):
    parser.error(
      f'--rows={args.rows}: no rows of one TPU; see benchmarks.aot_tables'
    )
  print(markdown_table(fastest))
  return 0


if __name__ == '__main__':
  sys.exit(main())
