"""Converts checkpoints of PyTorch-MAML to runs of maml_jax, and back."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from maml_jax import config as config_lib
from maml_jax.experiment import setup
from maml_jax.experiment.checkpoint import Checkpoint
from maml_jax.experiment.checkpoint_writer import CheckpointWriter
from maml_jax.pytorch_maml import configs, weights
from maml_jax.types import MetaState
from maml_jax.utils.errors import NonFiniteError, UserError
from maml_jax.utils.files import write_text

__all__ = [
  'MAML_JAX_KEY',
  'MODEL_KEYS',
  'PARTS',
  'ConvertedRun',
  'convert_checkpoint',
  'embedded_config',
  'export_checkpoint',
  'write_run',
]

PARTS = ('encoder', 'classifier')
# The keys of a checkpoint that describe the model.
MODEL_KEYS = ('encoder', 'encoder_args', 'classifier', 'classifier_args')
# The key under which `export_checkpoint` stores the config and the step.
MAML_JAX_KEY = 'maml_jax'
MAX_STEP = 2**31 - 1
# Errors that the state of a different optimizer can raise.
MISMATCH_ERRORS = (
  ArithmeticError,
  AttributeError,
  LookupError,
  TypeError,
  ValueError,
)
# Optimizer -> names of its moments in PyTorch and in optax.
MOMENTS = {
  'adam': {'exp_avg': 'mu', 'exp_avg_sq': 'nu'},
  'rmsprop': {'square_avg': 'nu'},
  'sgd': {'momentum_buffer': 'trace'},
}


class ConvertedRun(NamedTuple):
  """A converted run, to be resumed or evaluated.

  Attributes:
    config: its config.
    state: its state.
    accuracy: best validation accuracy so far, in [0, 1].
    notes: messages for the user, one line each.
  """

  config: ConfigDict
  state: MetaState
  accuracy: float
  notes: list[str]


def embedded_config(
  content: Mapping, file: str
) -> tuple[ConfigDict, list[str]]:
  """Converts the config that is stored in a checkpoint.

  Args:
    content: the content of a .pth file.
    file: the name of the file, for messages.

  Returns:
    A config and notes, see `configs.convert_config`.

  Raises:
    UserError: there is no config, or it has no equivalent.
  """
  if MAML_JAX_KEY in content:
    return _exported_config(content, file)[0], []
  config = content.get('config')
  if not isinstance(config, dict):
    raise UserError(f'{file} contains no config: add --config')
  # These keys are in the config, too, but may be missing in resumed runs.
  config = config | {key: content[key] for key in MODEL_KEYS if key in content}
  try:
    return configs.convert_config(config, file=f'{file}, config')
  except UserError as error:
    raise UserError(
      f'{error}; use --config to replace the config in the file'
    ) from error


def convert_checkpoint(
  content: Mapping,
  config: ConfigDict | None = None,
  file: str = 'the .pth file',
) -> ConvertedRun:
  """Converts a checkpoint of PyTorch-MAML to a run.

  Args:
    content: the content of a .pth file, with tensors as NumPy arrays: a
      checkpoint of `train.py`, or the `state_dict` of a whole model, which
      needs a config.
    config: the config of the run; default the one stored in the file.
    file: the name of the file, for messages.

  Raises:
    UserError: something is missing or does not match the config.
  """
  if _is_bare(content):
    if config is None:
      raise UserError(
        f'{file} is a state_dict without the config of its run: add '
        '--config=NAME, a preset such as mini_5w1s or a file, and '
        '--FIELD=VALUE for what differs from it, such as '
        '--model.encoder=resnet12'
      )
    content = _split_parts(content)
  state_dict = _state_dict(content, file)
  run_config, notes = (config, []) if config else embedded_config(content, file)
  try:
    params, stats = weights.from_torch(state_dict, run_config)
  except UserError as error:
    raise UserError(f'{file}: {error}') from error
  params, stats = jax.tree.map(jnp.float32, (params, stats))
  training = content.get('training')
  training = training if isinstance(training, dict) else {}
  step = _number(training, 'epoch') * run_config.train.steps_per_epoch
  if MAML_JAX_KEY in content:
    step = _exported_config(content, file)[1]
  step = int(min(step, MAX_STEP))
  opt_state = setup.make_outer_optimizer(run_config).init(params)
  opt_state = _set_schedule_step(opt_state, step)
  try:
    opt_state = _restore_moments(
      opt_state, training, list(state_dict), run_config
    )
  except MISMATCH_ERRORS:
    notes = [
      *notes,
      'the outer optimizer starts from its initial state: the file contains no '
      f'matching state of {run_config.outer.optimizer}',
    ]
  state = MetaState(jnp.int32(step), params, stats, opt_state)
  accuracy = min(_number(training, 'max_va'), 1.0)
  return ConvertedRun(run_config, state, accuracy, notes)


def export_checkpoint(saved: Checkpoint) -> dict:
  """Converts the weights and statistics of a checkpoint to PyTorch-MAML.

  Returns:
    The content of a .pth file for PyTorch-MAML's `test.py`, with tensors as
    NumPy arrays.

  Raises:
    UserError: PyTorch-MAML has no such model.
  """
  config = saved.config
  state_dict = weights.to_torch(saved.params, saved.stats, config)
  torch_encoders = {ours: theirs for theirs, ours in weights.ENCODERS.items()}
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
    'encoder': torch_encoders[config.model.encoder],
    'encoder_args': {'bn_args': bn_args},
    'encoder_state_dict': _select_part(state_dict, 'encoder'),
    'classifier': 'logistic',
    'classifier_args': head,
    'classifier_state_dict': _select_part(state_dict, 'classifier'),
    MAML_JAX_KEY: {'config': config_lib.to_json(config), 'step': saved.step},
  }


def write_run(
  run: ConvertedRun, workdir: pathlib.Path, preset: str | None = None
) -> None:
  """Writes a workdir with the run as its latest and its best checkpoint.

  Args:
    run: from `convert_checkpoint`.
    workdir: created if it does not exist.
    preset: the text of a preset to write to the workdir; default none.

  Raises:
    UserError: the workdir already contains checkpoints or cannot be written to,
      or a value is not finite.
  """
  if (workdir / 'checkpoints').exists():
    raise UserError(
      f'{workdir} already contains checkpoints: choose another --output'
    )
  try:
    with CheckpointWriter(workdir, run.config, None) as writer:
      write_text(workdir / 'config.json', config_lib.to_json(run.config))
      if preset:
        write_text(workdir / 'config.py', preset)
      writer.save(run.state)
      writer.save_if_best(run.state, {'accuracy': run.accuracy})
  except NonFiniteError as error:
    raise UserError(f'conversion failed: {error}') from error


def _is_bare(content: Mapping) -> bool:
  """Returns whether a file contains nothing but tensors and their names."""
  return bool(content) and all(
    isinstance(name, str) and isinstance(x, np.ndarray)
    for name, x in content.items()
  )


def _split_parts(state_dict: Mapping) -> dict[str, dict[str, np.ndarray]]:
  """Converts the `state_dict` of a whole model to that of a checkpoint."""
  # `nn.DataParallel` adds the first prefix.
  tensors = {n.removeprefix('module.'): x for n, x in state_dict.items()}
  return {f'{part}_state_dict': _select_part(tensors, part) for part in PARTS}


def _state_dict(content: Mapping, file: str) -> dict[str, np.ndarray]:
  """Returns the tensors of a checkpoint by their names in the whole model."""
  keys = [f'{part}_state_dict' for part in PARTS]
  for key in keys:
    if not isinstance(content.get(key), dict):
      raise UserError(f'{file} is not a checkpoint of PyTorch-MAML: no {key}')
  return {
    f'{part}.{name}': x
    for part, key in zip(PARTS, keys, strict=True)
    for name, x in content[key].items()
  }


def _select_part(state_dict: Mapping, part: str) -> dict[str, np.ndarray]:
  """Returns the tensors of one part by their names within the part."""
  return {
    name.removeprefix(f'{part}.'): x
    for name, x in state_dict.items()
    if name.startswith(f'{part}.')
  }


def _exported_config(content: Mapping, file: str) -> tuple[ConfigDict, int]:
  """Returns the config and step in a file written by `export_checkpoint`."""
  try:
    saved = content[MAML_JAX_KEY]
    config, step = config_lib.from_json(saved['config']), int(saved['step'])
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f'{file}: {MAML_JAX_KEY} is damaged') from error
  config_lib.validate(config)
  return config, max(step, 0)


def _number(training: Mapping, key: str) -> float:
  """Returns a number >= 0; 0 if it is missing or invalid."""
  value = training.get(key)
  return value if isinstance(value, int | float) and value > 0 else 0


def _set_schedule_step(opt_state: Any, step: int) -> Any:
  """Sets the step of the learning rate schedule in an optimizer state."""
  count = jnp.int32(step)
  return optax.tree_utils.tree_set(opt_state, _is_in_schedule, count=count)


def _is_in_schedule(path, _) -> bool:
  """Returns whether a path in an optimizer state leads into the schedule."""
  return getattr(path[-1], 'tuple_name', '') == 'ScaleByScheduleState'


def _restore_moments(
  opt_state: Any, training: Mapping, names: list[str], config: ConfigDict
) -> Any:
  """Copies the moments of PyTorch's optimizer to the state of optax's.

  # differs from PyTorch-MAML: Adam counts its steps once for all parameters.

  Args:
    opt_state: an initial state.
    training: the entry of the checkpoint with name and state of the optimizer.
    names: the names of all tensors of the PyTorch model, in order.
    config: the config of the run.

  Raises:
    One of `MISMATCH_ERRORS`: the state does not match.
  """
  optimizer = config.outer.optimizer
  if training.get('optimizer') != optimizer:
    raise ValueError(f'not a state of {optimizer}')
  state = training['optimizer_state_dict']['state']
  (group,) = training['optimizer_state_dict']['param_groups']
  params, _ = weights.abstract_variables(config)
  param_names = set(map(weights.torch_name, weights.flatten(params)))
  ordered_names = [name for name in names if name in param_names]
  fields = {}
  for torch_field, optax_field in MOMENTS[optimizer].items():
    tensors = {
      name: state.get(i, {}).get(torch_field)
      for i, name in zip(group['params'], ordered_names, strict=True)
    }
    moments = weights.params_from_names(tensors, params)
    fields[optax_field] = jax.tree.map(jnp.float32, moments)
  if optimizer == 'adam':
    steps = [int(entry['step']) for entry in state.values()]
    fields['count'] = jnp.int32(max(steps, default=0))
  return optax.tree_utils.tree_set(
    opt_state, lambda *entry: not _is_in_schedule(*entry), **fields
  )
