"""Command line for preparing data sets: python -m maml_jax.data --help."""

import argparse
import sys
from pathlib import Path

from maml_jax import data
from maml_jax.utils.errors import UserError

__all__ = ['main']


def main() -> int:
  """Runs the command line and returns its exit status."""
  args = _make_parser().parse_args()
  try:
    args.run(args)
  except UserError as error:
    print(error, file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    return 130
  return 0


def _make_parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m maml_jax.data',
    description='Prepares data sets once; every run then memory-maps them.',
  )
  commands = parser.add_subparsers(required=True, metavar='COMMAND')
  command = commands.add_parser(
    'prepare',
    help='prepare a data set from local files',
    description='Prepares a data set from local files; nothing is downloaded.\n'
    'An existing prepared data set is replaced once the new one is complete.',
    epilog=_describe_layouts(),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  command.add_argument('name', metavar='NAME', help=', '.join(data.SPECS))
  command.add_argument(
    '--from', dest='source', metavar='DIR', help='directory of the source files'
  )
  _add_data_dir(command)
  command.set_defaults(run=_prepare)
  command = commands.add_parser(
    'list', help='list the data sets and where they are prepared'
  )
  _add_data_dir(command)
  command.set_defaults(run=_list)
  return parser


def _add_data_dir(command: argparse.ArgumentParser) -> None:
  command.add_argument(
    '--data_dir',
    metavar='DIR',
    help='root directory of prepared data sets (default: $MAML_JAX_DATA, else'
    ' ~/.cache/maml_jax)',
  )


def _prepare(args: argparse.Namespace) -> None:
  directory = data.prepare(args.name, args.source, args.data_dir)
  summary = _summarize(args.name, directory.parent.parent)
  print(f'{args.name}: {summary}, in {directory}')


def _list(args: argparse.Namespace) -> None:
  for name, spec in data.SPECS.items():
    states = [
      f'{_summarize(name, data_dir)}, in {data.prepared_dir(name, data_dir)}'
      for data_dir in data.prepared_roots(name, args.data_dir)
    ]
    if spec.generated:
      directory = data.prepared_dir(name, args.data_dir)
      missing = f'generated on first use, in {directory}'
    else:
      missing = 'not prepared; see prepare --help'
    for state in states or [missing]:
      print(f'{name:15s} {state}')


def _summarize(name: str, data_dir: Path) -> str:
  """Returns, for example, 'train 64, val 16, test 20 classes'."""
  counts = (
    f'{split} {len(data.class_names(name, split, data_dir))}'
    for split in data.SPLITS
  )
  return ', '.join(counts) + ' classes'


def _describe_layouts() -> str:
  lines = ['accepted content of DIR:']
  for name, spec in data.SPECS.items():
    lines.append(f'  {name}')
    lines.extend(f'    {line}' for line in spec.layout.splitlines())
  return '\n'.join(lines)


if __name__ == '__main__':
  sys.exit(main())
