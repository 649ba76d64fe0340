"""Converts configs and checkpoints: python -m maml_jax.pytorch_maml --help."""

import argparse
import pathlib
import sys

from maml_jax import config as config_lib
from maml_jax.experiment import checkpoint
from maml_jax.pytorch_maml import configs, pth, runs, yaml_section
from maml_jax.utils.errors import UserError


def main(argv: list[str] | None = None) -> int:
  args = _parser().parse_args(argv)
  try:
    args.run(args)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    return 130
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m maml_jax.pytorch_maml',
    description='Converts what PyTorch-MAML reads and writes.',
  )
  commands = parser.add_subparsers(required=True, metavar='COMMAND')
  command = commands.add_parser('config', help='a .yaml file into a preset')
  command.add_argument('file', metavar='FILE.yaml', help='for its train.py')
  command.add_argument('--test', metavar='TEST.yaml', help='for its test.py')
  command.add_argument(
    '--output',
    metavar='configs/NAME.py',
    type=pathlib.Path,
    help='where to write the preset (default: it is printed)',
  )
  command.set_defaults(run=_config)
  command = commands.add_parser(
    'checkpoint', help='a .pth file into a run, or back'
  )
  command.add_argument(
    'source',
    metavar='SOURCE',
    type=pathlib.Path,
    help='a .pth file; with --to, a run or one of its checkpoints',
  )
  command.add_argument(
    '--config', metavar='CONFIG.py', help='by default, what the file says'
  )
  command.add_argument(
    '--output',
    metavar='DIR',
    type=pathlib.Path,
    help='the run to make (default: runs/, named after the file)',
  )
  command.add_argument(
    '--to', metavar='FILE.pth', type=pathlib.Path, help='the file to write'
  )
  command.set_defaults(run=_checkpoint)
  return parser


def _config(args: argparse.Namespace) -> None:
  test = yaml_section.read_yaml(args.test) if args.test else None
  config, notes = configs.convert_config(
    yaml_section.read_yaml(args.file), test, args.file, args.test or ''
  )
  _say(notes)
  names = (pathlib.Path(name).name for name in (args.file, args.test) if name)
  path = args.output or 'configs/NAME.py'
  text = configs.preset_source(config, path, ' and '.join(names))
  if args.output is None:
    print(text, end='')
    return
  try:
    with args.output.open('x') as file:
      file.write(text)
  except OSError as error:
    raise UserError(f'cannot write {args.output}: {error.strerror}') from error
  print(f'python main.py --config={args.output}')


def _checkpoint(args: argparse.Namespace) -> None:
  if args.to:
    _to_pth(args)
    return
  path = args.source
  if path.is_dir():
    raise UserError(f'{path} is a directory: --to FILE.pth makes a file of it')
  config = config_lib.load(args.config) if args.config else None
  run = runs.from_checkpoint(pth.load(path), config, str(path))
  _say(run.notes)
  name = '-'.join(filter(None, (path.parent.name, path.stem)))
  workdir = args.output or pathlib.Path('runs', name)
  config = args.config or workdir / 'config.py'
  preset = configs.preset_source(run.config, config, path.name)
  runs.write(run, workdir, None if args.config else preset)
  print(f'step {run.state.step}, in {workdir}; measure it, or go on, with')
  print(f'  python main.py --config={config} --workdir={workdir} --mode=eval')
  print(f'  python main.py --config={config} --workdir={workdir}')


def _to_pth(args: argparse.Namespace) -> None:
  for flag in ('config', 'output'):
    if getattr(args, flag):
      raise UserError(f'--{flag} and --to exclude each other')
  if args.to.exists():
    raise UserError(f'{args.to} exists already')
  best = (args.source / 'checkpoints' / 'best').is_dir()
  saved = checkpoint.load(args.source, 'best' if best else 'latest')
  pth.save(args.to, runs.to_checkpoint(saved))
  print(
    f'{saved.path} as {args.to}: weights and statistics, to be measured or '
    'to begin with; not the state of the outer optimiser'
  )


def _say(notes: list[str]) -> None:
  for note in notes:
    print(f'note: {note}', file=sys.stderr)


if __name__ == '__main__':
  sys.exit(main())
