"""Command line of the converter: python -m maml_jax.pytorch_maml --help."""

import argparse
import os
import pathlib
import shlex
import sys

from maml_jax import config as config_lib
from maml_jax.experiment import checkpoint
from maml_jax.pytorch_maml import (
  checkpoints,
  configs,
  presets,
  pth,
  yaml_section,
)
from maml_jax.utils.devices import require_devices
from maml_jax.utils.errors import UserError
from maml_jax.utils.files import expand_path


def main(argv: list[str] | None = None) -> int:
  """Runs the command line and returns the exit status."""
  parser = _make_parser()
  args, args.fields = parser.parse_known_args(argv)
  if args.fields and not getattr(args, 'config', None):
    parser.error(f'unrecognized arguments: {" ".join(args.fields)}')
  try:
    require_devices()
    args.run(args)
  except UserError as error:
    print(f'error: {error}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    return 130
  return 0


def _make_parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='python -m maml_jax.pytorch_maml',
    description='Converts configs and checkpoints of PyTorch-MAML.',
  )
  commands = parser.add_subparsers(required=True, metavar='COMMAND')
  _add_config_command(commands)
  _add_checkpoint_command(commands)
  return parser


def _add_config_command(commands) -> None:
  command = commands.add_parser(
    'config', help='convert a .yaml file to a preset'
  )
  command.add_argument(
    'file',
    metavar='FILE.yaml',
    type=os.path.expanduser,
    help='config file of train.py',
  )
  command.add_argument(
    '--test',
    metavar='TEST.yaml',
    type=os.path.expanduser,
    help='config file of test.py',
  )
  command.add_argument(
    '--output',
    metavar='configs/NAME.py',
    type=expand_path,
    help='file to write the preset to (default: print it)',
  )
  command.set_defaults(run=_convert_config)


def _add_checkpoint_command(commands) -> None:
  command = commands.add_parser(
    'checkpoint', help='convert a .pth file to a run, or a run to a .pth file'
  )
  command.add_argument(
    'source',
    metavar='SOURCE',
    type=expand_path,
    help='a .pth file; with --to, a run or one of its checkpoints',
  )
  command.add_argument(
    '--config',
    metavar='CONFIG.py',
    type=os.path.expanduser,
    help='config of the run, a file or a preset (default: the one stored in '
    'the .pth file); --FIELD=VALUE changes a field of it',
  )
  command.add_argument(
    '--output',
    metavar='DIR',
    type=expand_path,
    help='directory of the run (default: runs/ and the name of the file)',
  )
  command.add_argument(
    '--to',
    metavar='FILE.pth',
    type=expand_path,
    help='convert a run to this .pth file',
  )
  command.set_defaults(run=_convert_checkpoint)


def _convert_config(args: argparse.Namespace) -> None:
  test = yaml_section.read_yaml(args.test) if args.test else None
  config, notes = configs.convert_config(
    yaml_section.read_yaml(args.file), test, args.file, args.test or ''
  )
  _print_notes(notes)
  names = (pathlib.Path(name).name for name in (args.file, args.test) if name)
  path = args.output or 'configs/NAME.py'
  text = presets.preset_source(config, path, ' and '.join(names))
  if args.output is None:
    print(text, end='')
    return
  try:
    with args.output.open('x') as file:
      file.write(text)
  except OSError as error:
    raise UserError(f'cannot write {args.output}: {error.strerror}') from error
  print(shlex.join(['python', 'main.py', f'--config={args.output}']))


def _convert_checkpoint(args: argparse.Namespace) -> None:
  if args.to:
    _export_checkpoint(args)
    return
  path = args.source
  if path.is_dir():
    raise UserError(
      f'{path} is a directory: add --to FILE.pth to convert a run to a file'
    )
  config = config_lib.load(args.config, args.fields) if args.config else None
  run = checkpoints.convert_checkpoint(pth.load(path), config, str(path))
  _print_notes(run.notes)
  name = '-'.join(filter(None, (path.parent.name, path.stem)))
  workdir = args.output or pathlib.Path('runs', name)
  config, preset = args.config, None
  if not config or args.fields:
    config = workdir / 'config.py'
    preset = presets.preset_source(run.config, config, path.name)
  checkpoints.write_run(run, workdir, preset)
  command = shlex.join(
    ['python', 'main.py', f'--config={config}', f'--workdir={workdir}']
  )
  print(f'{workdir}: step {run.state.step}. To evaluate or resume the run:')
  print(f'  {command} --mode=eval')
  print(f'  {command}')


def _export_checkpoint(args: argparse.Namespace) -> None:
  for flag in ('config', 'output'):
    if getattr(args, flag):
      raise UserError(f'--{flag} cannot be combined with --to')
  if args.to.exists():
    raise UserError(f'{args.to} already exists')
  has_best = (args.source / 'checkpoints' / 'best').is_dir()
  saved = checkpoint.load(args.source, 'best' if has_best else 'latest')
  pth.save(args.to, checkpoints.export_checkpoint(saved))
  print(
    f'wrote {args.to} from {saved.path}: weights and statistics, to evaluate '
    'or fine-tune; without the state of the outer optimizer'
  )


def _print_notes(notes: list[str]) -> None:
  for note in notes:
    print(f'note: {note}', file=sys.stderr)


if __name__ == '__main__':
  sys.exit(main())
