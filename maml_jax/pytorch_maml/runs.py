"""Checkpoints of PyTorch-MAML <-> checkpoints here."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from maml_jax import config as config_lib
from maml_jax.experiment import checkpoint, setup
from maml_jax.experiment.checkpoint import Checkpoint, CheckpointWriter
from maml_jax.pytorch_maml import configs, weights
from maml_jax.types import MetaState
from maml_jax.utils.errors import UserError
from maml_jax.utils.files import write_text

PARTS = ('encoder', 'classifier')
MODEL = ('encoder', 'encoder_args', 'classifier', 'classifier_args')
MAML_JAX_KEY = 'maml_jax'  # key of what only files written here hold
MAX_STEP = 2**31 - 1
# What the state of another optimiser may raise.
MISMATCH_ERRORS = (
  ArithmeticError,
  AttributeError,
  LookupError,
  TypeError,
  ValueError,
)
# Optimiser there -> names of its moments there and in optax.
MOMENTS = {
  'adam': {'exp_avg': 'mu', 'exp_avg_sq': 'nu'},
  'rmsprop': {'square_avg': 'nu'},
  'sgd': {'momentum_buffer': 'trace'},
}


class ConvertedRun(NamedTuple):
  """A run to go on from, or to evaluate."""

  config: ConfigDict
  state: MetaState
  accuracy: float  # best on validation so far, in [0, 1]
  notes: list[str]  # what a person should know, one line each


def config_of(content: Mapping, file: str) -> tuple[ConfigDict, list[str]]:
  """The config that a checkpoint tells of itself, and notes.

  Args:
    content: of a .pth file.
    file: its name, for messages.

  Raises:
    UserError: it does not, or there is no such config here.
  """
  told = content.get('config')
  if MAML_JAX_KEY in content:
    return _own(content, file)[0], []
  if not isinstance(told, dict):
    raise UserError(f'{file} does not tell its config: give --config')
  # The model is told twice; a run that was resumed may lack it in its config.
  told = told | {key: content[key] for key in MODEL if key in content}
  try:
    return configs.convert_config(told, file=f'{file}, config')
  except UserError as error:
    raise UserError(f'{error}; or give --config') from error


def from_checkpoint(
  content: Mapping, config: ConfigDict | None = None, file: str = 'the .pth'
) -> ConvertedRun:
  """Converts a checkpoint of PyTorch-MAML.

  Args:
    content: of a .pth file, its tensors as NumPy arrays.
    config: what it is to be; by default what it says itself.
    file: its name, for messages.

  Raises:
    UserError: something is missing or does not fit.
  """
  state_dict = _state_dict(content, file)
  config, notes = (config, []) if config else config_of(content, file)
  try:
    params, stats = weights.from_torch(state_dict, config)
  except UserError as error:
    raise UserError(f'{file}: {error}') from error
  params, stats = jax.tree.map(jnp.float32, (params, stats))
  training = content.get('training')
  training = training if isinstance(training, dict) else {}
  step = _number(training, 'epoch') * config.train.steps_per_epoch
  if MAML_JAX_KEY in content:
    step = _own(content, file)[1]
  step = int(min(step, MAX_STEP))
  opt_state = _begin_at(setup.make_outer_optimizer(config).init(params), step)
  try:
    opt_state = _restore(opt_state, training, list(state_dict), config)
  except MISMATCH_ERRORS:
    notes = [
      *notes,
      'the outer optimiser begins anew: there is no state of '
      f'{config.outer.optimizer} that fits',
    ]
  state = MetaState(jnp.int32(step), params, stats, opt_state)
  return ConvertedRun(
    config, state, min(_number(training, 'max_va'), 1.0), notes
  )


def to_checkpoint(saved: Checkpoint) -> dict:
  """The inverse, as far as weights and statistics go.

  Returns:
    What a .pth file for PyTorch-MAML's `test.py` is to hold, tensors as NumPy
    arrays.

  Raises:
    UserError: PyTorch-MAML has no such model.
  """
  config = saved.config
  state_dict = weights.to_torch(saved.params, saved.stats, config)
  names = {ours: theirs for theirs, ours in weights.ENCODERS.items()}
  head = {
    'in_dim': state_dict['classifier.linear.weight'].shape[1],
    'n_way': config.task.ways,
    'temp': config.model.temperature,
    'learn_temp': config.model.learn_temperature,
  }
  bn_args = weights.bn_args(config) | {
    'n_episode': config.train.meta_batch_size
  }
  return {
    'encoder': names[config.model.encoder],
    'encoder_args': {'bn_args': bn_args},
    'encoder_state_dict': _part(state_dict, 'encoder'),
    'classifier': 'logistic',
    'classifier_args': head,
    'classifier_state_dict': _part(state_dict, 'classifier'),
    MAML_JAX_KEY: {'config': config_lib.to_json(config), 'step': saved.step},
  }


def write(
  run: ConvertedRun, workdir: pathlib.Path, preset: str | None = None
) -> None:
  """Makes a workdir: the checkpoint as the latest and as the best.

  Args:
    run: from `from_checkpoint`.
    workdir: made if missing.
    preset: the text of a preset to keep there.

  Raises:
    UserError: it holds checkpoints already, or cannot be written to.
  """
  if (workdir / 'checkpoints').exists():
    raise UserError(f'{workdir} holds checkpoints already: another --output')
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(workdir / 'config.json', config_lib.to_json(run.config))
    if preset:
      write_text(workdir / 'config.py', preset)
  except OSError as error:
    raise UserError(f'cannot write to {workdir}: {error.strerror}') from error
  try:
    with CheckpointWriter(workdir, run.config, None) as saver:
      saver.save(run.state)
      saver.save_if_best(run.state, {'accuracy': run.accuracy})
  except checkpoint.NotFinite as error:
    raise UserError(f'not converted: {error}') from error


def _state_dict(content: Mapping, file: str) -> dict[str, np.ndarray]:
  """The tensors under the names that they have in the whole model."""
  keys = [f'{part}_state_dict' for part in PARTS]
  for key in keys:
    if not isinstance(content.get(key), dict):
      raise UserError(f'{file} is no checkpoint of PyTorch-MAML: no {key}')
  return {
    f'{part}.{name}': x
    for part, key in zip(PARTS, keys, strict=True)
    for name, x in content[key].items()
  }


def _part(state_dict: Mapping, part: str) -> dict[str, np.ndarray]:
  """The tensors of one part, under the names that they have within it."""
  return {
    name.removeprefix(f'{part}.'): x
    for name, x in state_dict.items()
    if name.startswith(f'{part}.')
  }


def _own(content: Mapping, file: str) -> tuple[ConfigDict, int]:
  """The config and the step in a file that was written here."""
  try:
    own = content[MAML_JAX_KEY]
    config, step = config_lib.from_json(own['config']), int(own['step'])
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f'{file}: its {MAML_JAX_KEY} is damaged') from error
  config_lib.validate(config)
  return config, max(step, 0)


def _number(training: Mapping, key: str) -> float:
  """A number from 0 on; 0 if there is none."""
  value = training.get(key)
  return value if isinstance(value, int | float) and value > 0 else 0


def _begin_at(opt_state: Any, step: int) -> Any:
  """A fresh state of the outer optimiser, its schedule at a step."""
  count = jnp.int32(step)
  return optax.tree_utils.tree_set(opt_state, _of_schedule, count=count)


def _of_schedule(path, _) -> bool:
  """Whether a path within a state leads to a field of the schedule."""
  return getattr(path[-1], 'tuple_name', '') == 'ScaleByScheduleState'


def _restore(opt_state: Any, training: Mapping, names: list[str], config):
  """The moments of the optimiser there in the state of the one here.

  # differs from PyTorch-MAML: Adam counts its steps once for all parameters.

  Args:
    opt_state: a fresh one.
    training: with the name and the state of the optimiser there.
    names: of the tensors of its model, in order.
    config: the config here.

  Raises:
    One of `UNFIT`: it does not fit.
  """
  kind = config.outer.optimizer
  if training.get('optimizer') != kind:
    raise ValueError(f'not of {kind}')
  state = training['optimizer_state_dict']['state']
  (group,) = training['optimizer_state_dict']['param_groups']
  params, _ = weights.abstract_variables(config)
  own = set(map(weights.torch_name, weights.flatten(params)))
  order = [name for name in names if name in own]
  fields = {}
  for theirs, ours in MOMENTS[kind].items():
    named = {
      name: state.get(i, {}).get(theirs)
      for i, name in zip(group['params'], order, strict=True)
    }
    moments = weights.params_from_names(named, params)
    fields[ours] = jax.tree.map(jnp.float32, moments)
  if kind == 'adam':
    steps = [int(entry['step']) for entry in state.values()]
    fields['count'] = jnp.int32(max(steps, default=0))
  return optax.tree_utils.tree_set(
    opt_state, lambda *entry: not _of_schedule(*entry), **fields
  )
