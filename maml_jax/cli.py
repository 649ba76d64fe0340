"""The command line: which modes there are, and which flags each takes.

A mode is one row of `MODES`. What it does lies elsewhere and is imported when
it is called for: complaints about flags come before JAX takes its seconds.
"""

import argparse
import errno
import importlib
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from maml_jax import config as config_lib
from maml_jax.utils import console
from maml_jax.utils.errors import (
  NonFiniteError,
  UserError,
  check_choice,
  suggest,
)
from maml_jax.utils.files import oserror_message

HELP = """\
Learns to classify from few images, and resumes what was interrupted.

  python main.py                                       # the embedded glyphs
  python main.py --config=configs/mini_5w1s.py --tag=seed1 --config.seed=1
  python main.py --mode=eval --workdir=runs/mini_5w1s --eval.queries=1
  python main.py --mode=eval --checkpoint=checkpoints/glyphs_5w1s --eval.grid
  python main.py --mode=report runs/mini_5w1s runs/mini_5w1s-seed1
  python main.py --coordinator=host0:1234 --num_processes=2 --process_id=0

Your own images, a folder for each class:

  python main.py --mode=adapt --checkpoint=checkpoints/mini_5w1s \\
      --support=birds --query=more_birds
  python main.py --mode=predict --model=adapted/birds/model.npz new/*.jpg
  python main.py --config=configs/folder.py --config.data.root=DIR

modes:
"""
EXIT_CODES = """
exit codes:
  0  done                       2    what was asked for cannot be done
  1  failed, or not finite      130, 143  stopped by Ctrl-C, by SIGTERM
  75  of several processes one is lost; started again, all go on
"""
FIELDS_HELP = """
Any field of a config is a flag: --config.task.ways, or --task.ways for short.
configs/default.py lists them all with their meaning; the files beside it are
the presets. Those used most:
  --task.ways=5 --task.shots=1 --model.encoder=resnet12 --model.norm=support
  --inner.num_steps=5 --inner.first_order --train.num_epochs=10 --seed=1
  --eval.num_tasks=10000 --eval.queries=15 --eval.num_steps=10 --eval.grid
"""


# What a system may refuse whatever a program does.
OS_REFUSALS = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EROFS,
  errno.EACCES,
  errno.EPERM,
  errno.EFBIG,
)


class Mode(NamedTuple):
  """What `--mode=NAME` does.

  Attributes:
    run: 'module:function'; `function(flags, config)` returns an exit status,
      or None for 0. `config` is None unless `takes` has 'config'.
    takes: the flags that mean something to it.
    about: one line for `--help`.
  """

  run: str
  takes: tuple[str, ...]
  about: str


COMMON_FLAGS = ('mode', 'quiet', 'no_color')
SHORT_FIELDS = ('--seed', '--precision')
DISTRIBUTED_FLAGS = (
  'coordinator',
  'num_processes',
  'process_id',
  'distributed',
)
RUN_FLAGS = ('config', 'workdir', 'tag')
MODES = {
  'train': Mode(
    'maml_jax.cli:train',
    (*RUN_FLAGS, *DISTRIBUTED_FLAGS, 'checkpoint'),
    'meta-train in a workdir, from where it is; --checkpoint to start from',
  ),
  'eval': Mode(
    'maml_jax.cli:evaluate',
    (*RUN_FLAGS, *DISTRIBUTED_FLAGS, 'checkpoint'),
    'measure the workdir, or --checkpoint, on many tasks',
  ),
  'report': Mode(
    'maml_jax.cli:report',
    ('paths', 'output'),
    'draw one page, FILE, of what lies in the workdirs PATH...',
  ),
  'demo': Mode('maml_jax.cli:demo', RUN_FLAGS, 'train, measure, draw'),
  'adapt': Mode(
    'maml_jax.adapt:adapt',
    (
      'config',
      'checkpoint',
      'support',
      'query',
      'paths',
      'output',
      'head',
      'num_steps',
    ),
    'learn from folders of your own images, and answer for --query',
  ),
  'predict': Mode(
    'maml_jax.adapt:predict',
    ('model', 'paths', 'output'),
    'answer for image files, PATHs, with the --model that adapt has left',
  ),
}


class Parser(argparse.ArgumentParser):
  """Complains by `UserError`."""

  def error(self, message):
    raise UserError(f'{message}; see --help')


def make_parser() -> Parser:
  """The parser of all flags but those of config fields."""
  about = ''.join(f'  {name:8} {mode.about}\n' for name, mode in MODES.items())
  parser = Parser(
    description=HELP + about + EXIT_CODES + FIELDS_HELP,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('paths', nargs='*', metavar='PATH', help='what the mode says')
  add('--mode', default='train', metavar='MODE', help='default: train')
  add(
    '--config',
    metavar='FILE',
    help='default: configs/glyphs_5w1s.py, or '
    'the config of the checkpoint that is named',
  )
  add('--workdir', metavar='DIR', help='of a run; default: runs/CONFIG[-TAG]')
  add('--tag', help='sets runs of one config apart')
  add('--checkpoint', metavar='DIR', help='a workdir or one checkpoint')
  add(
    '--support',
    metavar='DIR',
    help='images to learn from: DIR/CLASS/*.jpg '
    'or other formats, two classes or more',
  )
  add(
    '--query',
    metavar='PATH',
    nargs='+',
    action='extend',
    help='images to answer for: files, or folders; in DIR/CLASS/ the class '
    'is taken for the truth',
  )
  add(
    '--output',
    metavar='PATH',
    help='of report, a file; default: report.html'
    ', in the workdir if it is a single one; of adapt, a folder; default: '
    'adapted/SUPPORT; of predict, which prints only by default',
  )
  add(
    '--head',
    help='checkpoint, zero or prototype: what the last layer '
    'begins with; default: what suits',
  )
  add(
    '--num_steps',
    metavar='K',
    type=int,
    help='inner steps of adapt; '
    'default: 10, or more if an evaluation takes more',
  )
  add('--model', metavar='FILE', help='what adapt has left: OUTPUT/model.npz')
  add('--quiet', action='store_true', help='say results and errors only')
  add(
    '--no_color',
    action='store_true',
    help='no colours on a terminal; so does the environment variable NO_COLOR',
  )
  add('--coordinator', metavar='HOST:PORT', help='where process 0 is to be met')
  add('--num_processes', type=int, metavar='N', help='of one run')
  add('--process_id', type=int, metavar='I', help='this one, from 0')
  add(
    '--distributed',
    action='store_true',
    help='ask the cluster for these; Slurm and Open MPI are asked anyway',
  )
  return parser


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """Returns the flags, and what is left: config fields.

  Raises:
    UserError: there is no such mode, or it does not take a flag that is given.
  """
  parser = make_parser()
  flags, overrides = parser.parse_known_intermixed_args(argv)
  # A word with a space in it is a path to argparse, whatever it begins with.
  overrides += [word for word in flags.paths if word.startswith('--')]
  flags.paths = [word for word in flags.paths if not word.startswith('--')]
  check_choice('--mode', flags.mode, MODES)
  takes = {*COMMON_FLAGS, *MODES[flags.mode].takes}
  for name, value in vars(flags).items():
    given = value not in (None, False, [], parser.get_default(name))
    if name not in takes and given:
      modes = [mode for mode in MODES if name in MODES[mode].takes]
      given = f'--{name}' if name != 'paths' else f'argument {value[0]!r}'
      others = f', only --mode={" or ".join(modes)} does' if modes else ''
      raise UserError(f'--mode={flags.mode} takes no {given}{others}')
  for word in overrides:
    name, known = word.partition('=')[0], [f'--{name}' for name in vars(flags)]
    is_field = '.' in name or name in SHORT_FIELDS
    if not is_field or 'config' not in takes:
      raise UserError(f'unknown argument {word}{suggest(name, known)}')
  return flags, overrides


def run(argv: Sequence[str], preset: str) -> int:
  """Does what a command line says.

  Args:
    argv: without the name of the program.
    preset: the file of the config if none is named.

  Returns:
    The exit status.

  Raises:
    UserError: something of it cannot be meant, or fails for a plain reason.
  """
  flags, overrides = parse(argv)
  mode = MODES[flags.mode]
  config = None
  if 'config' in mode.takes:
    config = _config(flags, overrides, preset)
  if 'distributed' in mode.takes:
    _join(flags)
  return _function(mode.run)(flags, config) or 0


def main(argv: Sequence[str], preset: str) -> int:
  """`run`, with complaints of one line in the place of exceptions."""
  words = set(argv)  # before they are parsed, for complaints about them
  with console.console_settings(
    quiet='--quiet' in words, color='--no_color' not in words
  ):
    try:
      return run(argv, preset)
    except KeyboardInterrupt:
      status = 130
    except BrokenPipeError:  # whoever read has seen enough
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      status = 128 + signal.SIGPIPE
    except UserError as error:
      console.print_error(str(error))
      status = 2
    except NonFiniteError as error:
      console.print_error(str(error))
      status = 1
    except Exception as error:
      status = _fail(error)
    if _joined():
      _hosts().leave(status)
    return status


def _fail(error: Exception) -> int:
  """Says what went wrong, where that can be said in a line; else raises it."""
  if isinstance(error, OSError) and error.errno in OS_REFUSALS:
    where = f'{error.filename}: ' if error.filename else ''
    console.print_error(f'{where}{oserror_message(error)}')
    return 2
  if _joined():
    return _hosts().explain(error)
  raise error


def _join(flags) -> None:
  """Joins other processes if there are any; JAX takes its seconds."""
  _hosts().join(
    flags.coordinator,
    flags.num_processes,
    flags.process_id,
    detect=flags.distributed,
    preemption=flags.mode != 'eval',
  )


def _hosts():
  from maml_jax.utils import distributed

  return distributed


def _joined() -> bool:
  """Whether this process has joined others, which may wait for it."""
  jax = sys.modules.get('jax')
  return jax is not None and jax.distributed.is_initialized()


def train(flags, config) -> int:
  from maml_jax import train

  if flags.checkpoint:
    config.train.init_from = flags.checkpoint
  return train.train(config, flags.workdir)


def evaluate(flags, config) -> None:
  from maml_jax.evaluation import evaluate, sweep

  measure = sweep.evaluate_grid if config.eval.grid else evaluate.evaluate
  measure(config, flags.checkpoint or flags.workdir, flags.workdir)


def report(flags, config) -> None:
  from maml_jax.report import write_report

  del config
  console.print_result(write_report(flags.output, flags.paths))


def demo(flags, config) -> int:
  from maml_jax import report, train
  from maml_jax.evaluation import evaluate

  if status := train.train(config, flags.workdir):
    return status
  evaluate.evaluate(config, flags.workdir)
  report.draw_demo(config, flags.workdir)
  return 0


def _function(name: str) -> Callable:
  module, _, function = name.partition(':')
  return getattr(importlib.import_module(module), function)


def _config(flags, overrides: Sequence[str], preset: str) -> ConfigDict:
  """The config that is named, or that of what is; settles the workdir too.

  Where a run or a checkpoint is named and no config, its own is taken.
  """
  source = flags.checkpoint or flags.workdir
  saved = config_lib.read_saved(source) if source else None
  if saved and not flags.config:
    config = config_lib.override(saved, overrides)
  else:
    config = config_lib.load(flags.config or preset, overrides)
  flags.workdir = flags.workdir or _workdir(flags, preset)
  return config


def _workdir(flags, preset: str) -> str:
  """The workdir if none is named: of the config, or of the checkpoint.

  A workdir given as --checkpoint keeps its own results; a training that begins
  with it goes elsewhere.
  """
  name, source = pathlib.Path(flags.config or preset).stem, flags.checkpoint
  if source:
    owner = pathlib.Path(source).resolve()
    if owner.parent.parent.name == 'checkpoints':  # WORKDIR/checkpoints/best/9
      owner = owner.parents[2]
    if flags.mode != 'train' and (owner / 'checkpoints').is_dir():
      return str(owner)
    begun = f'{name}-from-' if flags.config else 'from-'
    name = (begun if flags.mode == 'train' else '') + owner.name
  name = '-'.join(filter(None, (name, flags.tag)))
  return str(pathlib.Path('runs', name))
