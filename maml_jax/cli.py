"""The command line: its modes, and the flags that each mode accepts.

Each mode is a row of `MODES`. Its code is imported only when it runs, so that
errors in flags are reported before JAX is imported, which takes seconds.
"""

import argparse
import difflib
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
from maml_jax import default_config
from maml_jax.methods import with_pretraining
from maml_jax.utils import console
from maml_jax.utils.errors import NonFiniteError, UserError, check_choice
from maml_jax.utils.files import oserror_message

__all__ = [
  'MODES',
  'Mode',
  'main',
  'make_parser',
  'mode_function',
  'parse',
  'run',
]

DEFAULT_PRESET = 'glyphs_5w1s'

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


# Errors with which the system may refuse what any program does.
OS_REFUSALS = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EROFS,
  errno.EACCES,
  errno.EPERM,
  errno.EFBIG,
)


# Packages of the extra `train`, which the library does not need, and of `app`.
EXTRA_OF_PACKAGE = {
  'array_record': 'train',
  'fontTools': 'train',
  'gradio': 'app',
  'jinja2': 'train',
  'markupsafe': 'train',
  'matplotlib': 'train',
  'tensorboardX': 'train',
  'tensorflow_datasets': 'train',
}


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


def run(argv: Sequence[str]) -> int:
  """Executes a command line.

  Args:
    argv: the arguments, without the name of the program.

  Returns:
    The exit status.

  Raises:
    UserError: the arguments are invalid, or their input is.
  """
  flags, overrides = parse(argv)
  mode = MODES[flags.mode]
  config = None
  if 'config' in mode.flags:
    config = _load_config(flags, overrides)
  if 'distributed' in mode.flags:
    _connect_processes(flags)
  return mode_function(mode.run)(flags, config) or 0


def main(argv: Sequence[str]) -> int:
  """Executes `run` and reports errors as one line; returns the exit status."""
  given = set(argv)  # errors in flags follow these settings, too
  with console.console_settings(
    quiet='--quiet' in given, color='--no_color' not in given
  ):
    try:
      return run(argv)
    except KeyboardInterrupt:
      status = 130
    except BrokenPipeError:  # the reader of stdout has exited
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      status = 128 + signal.SIGPIPE
    except UserError as error:
      console.print_error(str(error))
      status = 2
    except NonFiniteError as error:
      console.print_error(str(error))
      status = 1
    except Exception as error:
      status = _report_error(error)
    if _is_distributed():
      _distributed().exit_bounded(status)
    return status


def _report_error(error: Exception) -> int:
  """Reports an error as one line if possible, otherwise raises it."""
  if isinstance(error, ModuleNotFoundError) and error.name in EXTRA_OF_PACKAGE:
    extra = EXTRA_OF_PACKAGE[error.name]
    console.print_error(
      f"this needs {error.name}: pip install 'maml_jax[{extra}]'"
    )
    return 2
  if isinstance(error, OSError) and error.errno in OS_REFUSALS:
    path = f'{error.filename}: ' if error.filename else ''
    console.print_error(f'{path}{oserror_message(error)}')
    return 2
  if _is_distributed():
    return _distributed().report_failure(error)
  raise error


def _connect_processes(flags) -> None:
  """Connects to the other processes, if any."""
  _distributed().initialize(
    flags.coordinator,
    flags.num_processes,
    flags.process_id,
    detect=flags.distributed,
  )


def _distributed():
  from maml_jax.utils import distributed  # imports JAX, which takes seconds

  return distributed


def _is_distributed() -> bool:
  """Returns whether this process is connected to others."""
  jax = sys.modules.get('jax')
  return jax is not None and jax.distributed.is_initialized()


def train(flags, config) -> int:
  """--mode=train."""
  from maml_jax import train  # imports JAX, which takes seconds
  from maml_jax.experiment import setup

  if flags.checkpoint:
    config.train.init_from = flags.checkpoint
  setup.configure_jax(config)
  return train.train(config, flags.workdir)


def evaluate(flags, config) -> None:
  """--mode=eval."""
  from maml_jax.evaluation import evaluate, sweep  # imports JAX
  from maml_jax.experiment import setup

  setup.configure_jax(config)
  measure = sweep.evaluate_grid if config.eval.grid else evaluate.evaluate
  measure(config, flags.checkpoint or flags.workdir, flags.workdir)


def report(flags, config) -> None:
  """--mode=report."""
  from maml_jax.report import write_report  # imports JAX and matplotlib
  from maml_jax.utils.devices import require_devices

  del config
  require_devices()
  console.print_result(write_report(flags.output, flags.paths))


def demo(flags, config) -> int:
  """--mode=demo."""
  from maml_jax import report, train  # imports JAX and matplotlib
  from maml_jax.evaluation import evaluate
  from maml_jax.experiment import setup

  setup.configure_jax(config)
  if status := train.train(config, flags.workdir):
    return status
  evaluate.evaluate(config, flags.workdir)
  report.draw_demo(config, flags.workdir)
  return 0


def mode_function(name: str) -> Callable:
  """Imports the function of a mode, given as 'module:function'."""
  module, _, function = name.partition(':')
  return getattr(importlib.import_module(module), function)


def _load_config(flags, overrides: Sequence[str]) -> ConfigDict:
  """Loads the config that is named or saved, and sets the default workdir.

  If a run or a checkpoint is given without a config, its own is used.
  """
  source = flags.checkpoint or flags.workdir
  saved = config_lib.read_saved(source) if source else None
  if saved and not flags.config:
    config = config_lib.override(saved, overrides)
  else:
    config = config_lib.load(flags.config or DEFAULT_PRESET, overrides)
    if flags.mode == 'pretrain' and config.train.objective != 'classes':
      config = config_lib.override(with_pretraining(config), overrides)
  flags.workdir = flags.workdir or _default_workdir(flags)
  return config


def _default_workdir(flags) -> str:
  """Returns the default workdir: of the config, or of the checkpoint.

  Results of a workdir given as --checkpoint are saved there; a training that
  starts from it uses another workdir. Results of a stand-alone checkpoint are
  not saved in a run of the same name.
  """
  name = pathlib.Path(flags.config or DEFAULT_PRESET).stem
  trains = flags.mode in ('train', 'pretrain')
  if flags.mode == 'pretrain' and 'pretrain' not in name:
    name += '-pretrain'
  if flags.checkpoint:
    owner = pathlib.Path(flags.checkpoint).resolve()
    if owner.parent.parent.name == 'checkpoints':  # WORKDIR/checkpoints/best/9
      owner = owner.parents[2]
    if not trains and (owner / 'checkpoints').is_dir():
      return str(owner)
    prefix = f'{name}-from-' if flags.config else 'from-'
    name = (prefix if trains else '') + owner.name
  workdir = pathlib.Path('runs', '-'.join(filter(None, (name, flags.tag))))
  is_run = (workdir / 'config.json').exists()
  if flags.checkpoint and not trains and is_run:
    workdir = workdir.with_name(f'eval-{workdir.name}')
  return str(workdir)
