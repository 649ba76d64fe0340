"""Compiles the workloads of docs/performance.md for TPUs and GPUs.

  python -m benchmarks.aot_tables             # compile what is missing
  python -m benchmarks.aot_tables --only h100 # for some of the chips only
  python -m benchmarks.aot_tables --table     # print Markdown

Runs in the environment of `benchmarks.aot`, with both extras. Each row is one
run of `benchmarks.aot`, with the flags in its name, and is appended to --rows;
rows of this file are not compiled again. Everything takes about four hours on
2 CPU cores; the rows for GPUs take ten minutes.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.aot import check_writable, format_number
from benchmarks.chips import CHIPS
from maml_jax.utils.errors import UserError, check_choice

ROWS = pathlib.Path(__file__).with_name('aot_rows.jsonl')
BFLOAT16 = '--precision=bfloat16'
TF32 = '--precision=tf32'
REMAT = '--inner.remat'
MIXED = '--inner.mixed_mode'
WIDE = '--model.encoder=wide_convnet4'
RESNET = '--model.encoder=resnet12'
SINGLE = '--train.tasks_per_chunk=1'
MERGED = '--train.tasks_per_chunk=4'


def steps(number: int) -> str:
  return f'--inner.num_steps={number}'


TASKS_OF_8_CHIPS = '--train.meta_batch_size=8'
# (number of chips, flags), those that matter most first.
TPU_WORKLOADS = (
  (1, [BFLOAT16]),
  (1, [BFLOAT16, WIDE]),
  (1, []),
)
WORKLOADS = {
  'h100': (
    (1, []),
    (1, [TF32]),
    (1, [BFLOAT16]),
    (1, [REMAT]),
    (1, [MIXED]),
    (1, [SINGLE]),
    (1, [steps(1)]),
    (1, [steps(10)]),
    (1, [steps(20)]),
    (1, [steps(20), REMAT]),
    (1, [steps(20), MIXED]),
    (1, [WIDE]),
    (1, [WIDE, BFLOAT16]),
    (1, [WIDE, REMAT]),
    (1, [RESNET, REMAT]),
    (1, [RESNET, REMAT, BFLOAT16]),
    (1, [RESNET, REMAT, SINGLE]),
    (2, []),
    (4, []),
    (8, [TASKS_OF_8_CHIPS]),
  ),
  'v5e': (
    *TPU_WORKLOADS,
    (4, []),
    (4, [BFLOAT16]),
    (8, [TASKS_OF_8_CHIPS, BFLOAT16]),
    (1, [BFLOAT16, REMAT]),
    (1, [BFLOAT16, MIXED]),
    (1, [BFLOAT16, steps(1)]),
    (1, [BFLOAT16, steps(20), REMAT]),
    (1, [BFLOAT16, SINGLE]),
    (1, [MERGED]),
    (1, [MERGED, REMAT]),
    (1, [BFLOAT16, RESNET, REMAT]),
  ),
  'v5p': TPU_WORKLOADS,
  'v6e': TPU_WORKLOADS,
}
# Machines with enough chips.
TOPOLOGIES = {'v5e': 'v5e:2x4', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2'}


def commands(chips: list[str]) -> Iterator[tuple[str, int, list[str]]]:
  """Yields the chip, the number of chips and the flags of each row."""
  for chip in chips:
    for count, flags in WORKLOADS[chip]:
      yield chip, count, flags


def arguments(chip: str, count: int, flags: list[str]) -> list[str]:
  """Returns the arguments of `benchmarks.aot` for a row."""
  if chip == 'h100':
    machine = ['--platform=cuda', f'--target={chip}']
  else:
    machine = ['--platform=tpu', f'--topology={TOPOLOGIES[chip]}']
  return [*machine, f'--chips={count}', *flags]


def load(path: pathlib.Path) -> list[dict]:
  """Returns the rows of a file; none if it does not exist.

  Raises:
    UserError: the file cannot be read, or a line is not a row.
  """
  try:
    lines = path.read_text().splitlines() if path.exists() else []
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'--rows: cannot read {path}: {error}') from error
  rows = []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
      check_choice('chip', row['chip'], CHIPS)
      rows.append({'name': row['name'], 'chips': row['chips'], **row})
    except (ValueError, TypeError, KeyError) as error:
      raise UserError(
        f'--rows={path}: line {number} is not a row of benchmarks.aot; '
        'delete it'
      ) from error
  return rows


def compile_missing(path: pathlib.Path, chips: list[str]) -> int:
  """Compiles the rows that a file lacks; returns how many failed.

  Raises:
    UserError: the file cannot be read or written.
  """
  done = {(row['chip'], row['chips'], row['name']) for row in load(path)}
  todo = [
    (chip, count, flags)
    for chip, count, flags in commands(chips)
    if (chip, count, ' '.join(['mini_5w1s', *flags])) not in done
  ]
  check_writable(path)
  failed = 0
  for i, row in enumerate(todo):
    args = arguments(*row)
    print(f'[{i + 1}/{len(todo)}] benchmarks.aot {" ".join(args)}', flush=True)
    program = [sys.executable, '-m', 'benchmarks.aot', f'--json={path}', *args]
    failed += bool(subprocess.run(program).returncode)
  return failed


def format_flags(row: dict) -> str:
  """Returns the flags of a row as Markdown."""
  return ' '.join(f'`{flag}`' for flag in row['name'].split()[1:])


def markdown_table(rows: list[dict]) -> str:
  """Returns the most important columns of rows as Markdown."""
  columns = {
    'chips': lambda row: f'{row["chips"]} {row["chip"]}',
    'flags': format_flags,
    'compiler estimate': lambda row: (
      f'{format_number(row["ms"])} ms' if 'ms' in row else ''
    ),
    'roofline': lambda row: f'{format_number(row["roofline_ms"])} ms',
    'temporary memory': lambda row: f'{row["temporary_mb"]:,.0f} MB',
    'moved': lambda row: f'{format_number(row["moved_gb"])} GB',
    'GFLOP': lambda row: format_number(row['gflop']),
    'kernels': lambda row: f'{row["kernels"]:,}',
    'compile time': lambda row: f'{row["compile_s"]:,.0f} s',
  }
  if not any('ms' in row for row in rows):  # GPUs only
    del columns['compiler estimate']
  lines = [f'| {" | ".join(columns)} |', '|---' * len(columns) + '|']
  for row in rows:
    cells = (cell(row) for cell in columns.values())
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.aot_tables',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--rows', type=pathlib.Path, default=ROWS, help='default: %(default)s')
  add('--only', nargs='+', choices=list(CHIPS), default=list(CHIPS))
  add('--table', action='store_true', help='print the rows as Markdown')
  args = parser.parse_args(argv)
  try:
    if not args.table:
      return min(1, compile_missing(args.rows, args.only))
    rows = [row for row in load(args.rows) if row['chip'] in args.only]
  except UserError as error:
    parser.error(str(error))
  if not rows:
    parser.error(f'--rows={args.rows}: no rows of {", ".join(args.only)}')
  print(markdown_table(rows))
  return 0


if __name__ == '__main__':
  sys.exit(main())
