"""The flags of the command line, and which of them each mode accepts."""

import argparse
import difflib
import os
from collections.abc import Sequence
from typing import NamedTuple

from maml_jax import config as config_lib
from maml_jax import default_config
from maml_jax.utils.errors import UserError, check_choice

__all__ = ['MODES', 'Mode', 'make_parser', 'parse']

HELP = """\
Meta-learns few-shot classification. Interrupted runs resume.

  python main.py                                       # the built-in glyphs
  python main.py --config=mini_5w1s --tag=seed1 --config.seed=1
  python main.py --mode=eval --workdir=runs/mini_5w1s --eval.queries=1
  python main.py --mode=eval --checkpoint=checkpoints/glyphs_5w1s --eval.grid
  python main.py --mode=report runs/mini_5w1s runs/mini_5w1s-seed1
  python main.py --coordinator=host0:1234 --num_processes=2 --process_id=0

With your own images, one folder per class:

  python main.py --mode=adapt --checkpoint=checkpoints/mini_5w1s \\
      --support=birds --query=more_birds
  python main.py --mode=predict --model=adapted/birds/model.npz new/*.jpg
  python main.py --config=folder --data.root=DIR

modes:
"""
EXIT_CODES = """
exit codes:
  0         success                2    invalid input
  1         failed, or not finite  75   lost another process; restart all
  130, 143  stopped by Ctrl-C or SIGTERM
"""
FIELDS_HELP = """
Any field of a config is a flag: --config.task.ways, or --task.ways for short.
maml_jax/default_config.py lists all of them with their meaning; configs/ has
the presets. The most used:
  --task.ways=5 --task.shots=1 --model.encoder=resnet12 --model.norm=support
  --inner.num_steps=5 --inner.frozen=bn --train.num_epochs=10 --seed=1
  --eval.num_tasks=10000 --eval.queries=15 --eval.num_steps=10 --eval.grid
"""


class Mode(NamedTuple):
  """What `--mode=NAME` does.

  Attributes:
    run: 'module:function'; `function(flags, config)` returns an exit status,
      or None for 0. `config` is None unless `flags` has 'config'.
    flags: the flags that it accepts.
    about: one line for `--help`.
  """

  run: str
  flags: tuple[str, ...]
  about: str


COMMON_FLAGS = ('mode', 'quiet', 'no_color')
SHORT_FIELDS = ('--seed', '--precision')
RUN_FLAGS = ('config', 'workdir', 'tag')
PROCESS_FLAGS = ('coordinator', 'num_processes', 'process_id', 'distributed')
ADAPT_FLAGS = (
  'config',
  'checkpoint',
  'support',
  'query',
  'paths',
  'output',
  'head',
  'num_steps',
)
MODES = {
  'train': Mode(
    'maml_jax.cli:train',
    (*RUN_FLAGS, *PROCESS_FLAGS, 'checkpoint'),
    'meta-train in a workdir; --checkpoint provides initial parameters',
  ),
  'pretrain': Mode(
    'maml_jax.cli:train',
    (*RUN_FLAGS, *PROCESS_FLAGS, 'checkpoint'),
    'train the encoder as a classifier of all training classes',
  ),
  'eval': Mode(
    'maml_jax.cli:evaluate',
    (*RUN_FLAGS, *PROCESS_FLAGS, 'checkpoint'),
    'evaluate the workdir, or --checkpoint, on many tasks',
  ),
  'report': Mode(
    'maml_jax.cli:report',
    ('paths', 'output'),
    'write an HTML report of the workdirs PATH...',
  ),
  'demo': Mode('maml_jax.cli:demo', RUN_FLAGS, 'train, evaluate, plot'),
  'adapt': Mode(
    'maml_jax.fewshot.commands:adapt',
    ADAPT_FLAGS,
    'adapt to folders of your own images and classify --query',
  ),
  'predict': Mode(
    'maml_jax.fewshot.commands:predict',
    ('model', 'paths', 'output'),
    'classify the images PATH... with the --model written by adapt',
  ),
  'app': Mode(
    'maml_jax.fewshot.app:app',
    ('config', 'checkpoint', 'host', 'port'),
    'open a page in the browser to adapt --checkpoint to drawings and photos',
  ),
}


class Parser(argparse.ArgumentParser):
  """Reports errors as `UserError`."""

  def error(self, message):
    raise UserError(f'{message}; see --help')


def make_parser() -> Parser:
  """Returns the parser of all flags except config fields."""
  modes = ''.join(f'  {name:8} {mode.about}\n' for name, mode in MODES.items())
  parser = Parser(
    description=HELP + modes + EXIT_CODES + FIELDS_HELP,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add(
    'paths',
    nargs='*',
    metavar='PATH',
    type=os.path.expanduser,
    help='workdirs (report) or images (adapt, predict)',
  )
  add('--mode', default='train', metavar='MODE', help='default: train')
  add(
    '--config',
    metavar='FILE',
    type=os.path.expanduser,
    help='a file or the name of a preset; default: glyphs_5w1s, or the '
    'config of the given checkpoint or workdir',
  )
  add(
    '--workdir',
    metavar='DIR',
    type=os.path.expanduser,
    help='directory of the run; default: runs/CONFIG[-TAG]',
  )
  add('--tag', help='distinguishes runs of the same config')
  add(
    '--checkpoint',
    metavar='DIR',
    type=os.path.expanduser,
    help='a workdir or one checkpoint',
  )
  add(
    '--support',
    metavar='DIR',
    type=os.path.expanduser,
    help='labeled images: DIR/CLASS/*.jpg or other formats, two or more '
    'classes',
  )
  add(
    '--query',
    metavar='PATH',
    type=os.path.expanduser,
    nargs='+',
    action='extend',
    help='images to classify: files or folders; in DIR/CLASS/ the folder '
    'names the true class',
  )
  add(
    '--output',
    metavar='PATH',
    type=os.path.expanduser,
    help='report: a file, default report.html, in the workdir if there is '
    'only one; adapt: a folder, default adapted/SUPPORT; predict: a folder, '
    'default none',
  )
  add(
    '--head',
    help='initial last layer of adapt: checkpoint, zero or prototype; '
    'default: chosen by the checkpoint',
  )
  add(
    '--num_steps',
    metavar='K',
    type=int,
    help='inner steps of adapt; default: 10, or more if the config '
    'evaluates with more',
  )
  add(
    '--model',
    metavar='FILE',
    type=os.path.expanduser,
    help='written by adapt: OUTPUT/model.npz',
  )
  add(
    '--host',
    help='address that app listens on; default: 127.0.0.1, this machine only',
  )
  add('--port', type=int, help='port of app; default: a free one from 7860 on')
  add('--quiet', action='store_true', help='print results and errors only')
  add(
    '--no_color',
    action='store_true',
    help='no colors, like the environment variable NO_COLOR',
  )
  add('--coordinator', metavar='HOST:PORT', help='address of process 0')
  add('--num_processes', type=int, metavar='N', help='number of processes')
  add(
    '--process_id', type=int, metavar='I', help='number of this process, from 0'
  )
  add(
    '--distributed',
    action='store_true',
    help='query the cluster for the previous three; automatic with Slurm, '
    'Open MPI and TPU pods on Kubernetes',
  )
  return parser


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """Returns the flags and the remaining arguments, which set config fields.

  Raises:
    UserError: the mode does not exist or does not accept a given flag.
  """
  parser = make_parser()
  flags, overrides = parser.parse_known_intermixed_args(argv)
  # To argparse, an argument with a space is a path, whatever it starts with.
  overrides += [path for path in flags.paths if path.startswith('--')]
  flags.paths = [path for path in flags.paths if not path.startswith('--')]
  check_choice('--mode', flags.mode, MODES)
  accepted = {*COMMON_FLAGS, *MODES[flags.mode].flags}
  fields = _fields_by_name(flags.mode)
  for argument in overrides:
    name = argument.partition('=')[0]
    is_field = '.' in name or name in SHORT_FIELDS
    if not is_field or 'config' not in accepted:
      hint = _flag_hint(name.lstrip('-'), flags.mode)
      raise UserError(f'unknown argument {argument}{hint}')
  for name, value in vars(flags).items():
    is_given = value not in (None, False, [], parser.get_default(name))
    if name not in accepted and is_given:
      modes = [mode for mode in MODES if name in MODES[mode].flags]
      given = f'--{name}' if name != 'paths' else f'argument {value[0]!r}'
      hint = f'; it belongs to --mode={" or ".join(modes)}' if modes else ''
      if name in ('head', 'num_steps'):  # fields have these names, too
        hint += ''.join(f', or use --{f}' for f in fields.get(name, ()))
      if name == 'paths' and overrides and '=' not in overrides[-1]:
        hint = f'; values follow an equals sign: {overrides[-1]}=VALUE'
      raise UserError(f'--mode={flags.mode} does not accept {given}{hint}')
  return flags, overrides


def _flag_hint(word: str, mode: str) -> str:
  """Returns the end of a message about an unknown flag.

  Args:
    word: the flag, without dashes: misspelled, or a field without its section.
    mode: suggests only what this mode accepts.
  """
  words = {name: [name] for name in (*COMMON_FLAGS, *MODES[mode].flags)}
  del words['mode']
  words.pop('paths', None)
  for name, fields in _fields_by_name(mode).items():
    words.setdefault(name, fields)
    words |= {field: [field] for field in fields}
  found = (
    [word] if word in words else difflib.get_close_matches(word, words, 1, 0.7)
  )
  if not found:
    return '; see --help'
  return f'; did you mean {" or ".join(f"--{x}" for x in words[found[0]])}?'


def _fields_by_name(mode: str) -> dict[str, list[str]]:
  """Returns fields that configure a mode: {'lr': ['outer.lr'], ...}."""
  if 'config' not in MODES[mode].flags:
    return {}
  trains = mode in ('train', 'pretrain', 'demo')
  found: dict[str, list[str]] = {}
  for field in config_lib.flatten(default_config.get_config()):
    section, _, name = field.rpartition('.')
    used = section != 'eval' if trains else section in ('eval', '')
    if used and not (section == 'val' and name in found):
      found.setdefault(name, []).append(field)
  return found
