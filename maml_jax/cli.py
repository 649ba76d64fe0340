"""The command line: loads the config and runs a mode.

Each mode is a row of `cli_flags.MODES`. Its code is imported only when it runs,
so that errors in flags are reported before JAX is imported, which takes
seconds.
"""

import errno
import importlib
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from maml_jax import config as config_lib
from maml_jax.cli_flags import MODES, parse
from maml_jax.methods import with_pretraining
from maml_jax.utils import console
from maml_jax.utils.errors import NonFiniteError, UserError
from maml_jax.utils.files import oserror_message

__all__ = ['main', 'mode_function', 'run']

DEFAULT_PRESET = 'glyphs_5w1s'
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
