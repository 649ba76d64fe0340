"""Prepares and lists data sets: python -m maml_jax.data --help."""

import argparse
import sys
from pathlib import Path

from maml_jax import data
from maml_jax.utils.errors import UserError


def main() -> int:
  parser = argparse.ArgumentParser(
    prog='python -m maml_jax.data',
    description='Prepares data sets once, to be memory-mapped by every run.',
  )
  commands = parser.add_subparsers(required=True, metavar='COMMAND')
  command = commands.add_parser(
    'prepare',
    help='prepare a data set from files that you have',
    description='Prepares a data set from files that you have; nothing is\n'
    'downloaded. It replaces an earlier one when it is complete.',
    epilog=_layouts(),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  command.add_argument('name', metavar='NAME', help=', '.join(data.SPECS))
  command.add_argument(
    '--from', dest='source', metavar='DIR', help='where the files are'
  )
  _add_data_dir(command)
  command.set_defaults(run=_prepare)
  command = commands.add_parser(
    'list', help='show what there is and what is prepared'
  )
  _add_data_dir(command)
  command.set_defaults(run=_list)
  args = parser.parse_args()
  try:
    args.run(args)
  except UserError as error:
    print(error, file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    return 130
  return 0


def _add_data_dir(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    '--data_dir',
    metavar='DIR',
    help='where prepared data are kept (default: $MAML_JAX_DATA, else'
    ' ~/.cache/maml_jax)',
  )


def _prepare(args: argparse.Namespace) -> None:
  folder = data.prepare(args.name, args.source, args.data_dir)
  place = folder.parent.parent
  print(f'{args.name}: {_summary(args.name, place)}, in {folder}')


def _list(args: argparse.Namespace) -> None:
  for name, facts in data.SPECS.items():
    states = [
      f'{_summary(name, place)}, in {data.prepared_dir(name, place)}'
      for place in data.prepared_dirs(name, args.data_dir)
    ]
    if facts.generated:
      missing = (
        f'made on first use, in {data.prepared_dir(name, args.data_dir)}'
      )
    else:
      missing = 'not prepared; see prepare --help'
    for state in states or [missing]:
      print(f'{name:15s} {state}')


def _summary(name: str, data_dir: Path) -> str:
  counts = (
    f'{split} {len(data.class_names(name, split, data_dir))}'
    for split in data.SPLITS
  )
  return ', '.join(counts) + ' classes'


def _layouts() -> str:
  lines = []
  for name, facts in data.SPECS.items():
    lines.append(f'{name} is made from')
    lines.extend(f'  {line}' for line in facts.layout.splitlines())
  return '\n'.join(lines)


if __name__ == '__main__':
  sys.exit(main())
