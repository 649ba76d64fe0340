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

from benchmarks.aot_tables import ROWS, load
from benchmarks.chips import CHIPS, Chip

FLOAT_BYTES = 4  # of a float32
POD_SIZES = (1, 8, 64, 256)
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
  """Returns the estimates of rows of one chip as Markdown."""
  lines = [
    '| chip, workload | memory of a chip | chips | tasks | iteration | tasks/s '
    '| sent per chip | all-reduce |',
    '|---|---|---|---|---|---|---|---|',
  ]
  for row in rows:
    for chips in POD_SIZES:
      estimate = estimate_iteration(row, CHIPS[row['chip']], chips)
      lines.append(
        f'| {row["chip"]}, {row["name"]} | {row["peak_mb"] / 1e3:.2f} GB | '
        f'{chips} | {chips * row["tasks"]:g} | {1e3 * estimate["seconds"]:.2f} '
        f'ms | {estimate["tasks_per_second"]:,.0f} | '
        f'{estimate["sent_bytes"] / 1e6:.2f} MB | '
        f'{estimate["all_reduce_share"]:.2%} |'
      )
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
  if not (rows := load(args.rows)):
    parser.error(f'--rows={args.rows}: no rows; see benchmarks.aot_tables')
  print(markdown_table(fastest_rows(rows)))
  return 0


if __name__ == '__main__':
  sys.exit(main())
