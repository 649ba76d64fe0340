"""Converts the names and layouts of PyTorch-MAML's tensors, both ways.

In PyTorch-MAML, convolution kernels are [out, in, height, width] and heads
[ways, features], with the last feature map flattened as [channel, height,
width]. In maml_jax they are [height, width, in, out] and [features, ways], with
the last feature map flattened as [height, width, channel].
"""

import fnmatch
import functools
import re
from collections.abc import Iterable, Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from maml_jax import config as config_lib
from maml_jax import data
from maml_jax.experiment import setup
from maml_jax.types import EPISODE, PyTree
from maml_jax.utils.errors import UserError

__all__ = [
  'ENCODERS',
  'MAX_NAMES_IN_MESSAGE',
  'UNUSED_BUFFERS',
  'abstract_variables',
  'bn_args',
  'flatten',
  'from_torch',
  'jax_layout',
  'jax_path',
  'params_from_names',
  'to_torch',
  'torch_layout',
  'torch_name',
  'unflatten',
]

# PyTorch-MAML's encoder -> maml_jax's. # differs from PyTorch-MAML: its
# "resnet18" has one block per stage, which is resnet10 here.
ENCODERS = {
  'convnet4': 'convnet4',
  'wide-convnet4': 'wide_convnet4',
  'resnet12': 'resnet12',
  'wide-resnet12': 'wide_resnet12',
  'resnet18': 'resnet10',
  'wide-resnet18': 'wide_resnet10',
}

# Buffers without equivalent in maml_jax: running moments of layers whose mode
# is not `global`, running moments of single episodes, and counts.
UNUSED_BUFFERS = re.compile(
  r'encoder\..*\.((running_mean|running_var)(_\d+)?'
  r'|num_batches_tracked(_\d+)?|batch_size)'
)
MAX_NAMES_IN_MESSAGE = 3  # tensors that are named; further ones are counted

Path = tuple[str, ...]
Arrays = dict[str, np.ndarray]


def jax_path(name: str) -> Path:
  """Converts a tensor's name to its path in the params or the moments.

  jax_path('encoder.encoder.conv1.bn.weight')
  # ('encoder', 'conv1', 'bn', 'scale')
  """
  *parts, leaf = name.replace('encoder.encoder.', 'encoder.').split('.')
  is_norm = any(part.startswith('bn') for part in parts)
  leaves = {
    'weight': 'scale' if is_norm else 'kernel',
    'temp': 'temperature',
    'running_mean': 'mean',
    'running_var': 'var',
  }
  parts = [part for part in parts if part != 'linear']
  return *parts, leaves.get(leaf, leaf)


def torch_name(path: Path) -> str:
  """Inverts `jax_path`."""
  *parts, leaf = path
  leaves = {
    'kernel': 'weight',
    'scale': 'weight',
    'temperature': 'temp',
    'mean': 'running_mean',
    'var': 'running_var',
  }
  if parts[0] == 'encoder' and parts[1].startswith('conv'):
    parts.insert(0, 'encoder')
  if parts == ['classifier'] and leaf != 'temperature':
    parts.append('linear')
  return '.'.join([*parts, leaves.get(leaf, leaf)])


def jax_layout(x: np.ndarray, channels: int) -> np.ndarray:
  """Converts a tensor to the layout of maml_jax.

  Args:
    x: a convolution kernel, a head, or a vector.
    channels: channels of the last feature map.
  """
  if x.ndim == 4:
    return x.transpose(2, 3, 1, 0)
  if x.ndim == 2:
    x = x.reshape(len(x), channels, -1)
    return x.transpose(2, 1, 0).reshape(-1, len(x))
  return x


def torch_layout(x: np.ndarray, channels: int) -> np.ndarray:
  """Inverts `jax_layout`."""
  if x.ndim == 4:
    return x.transpose(3, 2, 0, 1)
  if x.ndim == 2:
    ways = x.shape[1]
    return x.reshape(-1, channels, ways).transpose(2, 1, 0).reshape(ways, -1)
  return x


def unflatten(leaves: Mapping[Path, PyTree]) -> PyTree:
  """Converts a dict such as {('a', 'b'): x} to nested dicts."""
  tree = {}
  for path, leaf in leaves.items():
    node = tree
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = leaf
  return tree


def flatten(tree: PyTree) -> dict[Path, PyTree]:
  """Inverts `unflatten`."""
  return {
    tuple(key.key for key in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def abstract_variables(config: ConfigDict) -> tuple[PyTree, PyTree]:
  """Returns the shapes and dtypes of the params and stats of a config."""
  return _abstract_variables(config_lib.to_json(config))


@functools.lru_cache(maxsize=8)
def _abstract_variables(text: str) -> tuple[PyTree, PyTree]:
  config = config_lib.from_json(text)
  learner = setup.phase_learner(config, setup.train_phase(config))
  return jax.eval_shape(learner.init, jax.random.key(0))


def from_torch(
  state_dict: Mapping[str, np.ndarray], config: ConfigDict
) -> tuple[PyTree, PyTree]:
  """Converts the tensors of a PyTorch-MAML model.

  Args:
    state_dict: the state dict of the whole model as arrays, with names such as
      'encoder.encoder.conv1.conv.weight' and 'classifier.linear.bias'.
    config: the config of the model; data, task and model are used.

  Returns:
    (params, stats), pytrees of NumPy arrays with the dtypes of `state_dict`.
    Statistics of single episodes have their initial values.

  Raises:
    UserError: the model has no equivalent, or names, shapes or dtypes do not
      match the config.
  """
  bn_args(config)
  params, stats = abstract_variables(config)
  channels = _channels(params)
  used = {
    n: x for n, x in state_dict.items() if not UNUSED_BUFFERS.fullmatch(n)
  }
  used |= {n: state_dict[n] for n in _moment_names(stats) if n in state_dict}
  _check_tensors(used, params, stats, channels)

  moments = {
    path: np.full(x.shape, path[-1] == 'var', x.dtype)  # 1 for var, else 0
    if path[0] == EPISODE
    else np.asarray(state_dict[torch_name(path[1:])])
    for path, x in flatten(stats).items()
  }
  return params_from_names(state_dict, params), unflatten(moments)


def params_from_names(
  tensors: Mapping[str, np.ndarray | None], params: PyTree
) -> PyTree:
  """Converts named tensors to a pytree like `params`.

  Args:
    tensors: name in PyTorch-MAML -> array; None stands for zeros.
    params: a pytree of arrays or of their shapes and dtypes.

  Raises:
    ValueError: an array has another shape than in `params`.
  """
  channels = _channels(params)

  def convert(path, like):
    x = tensors[torch_name(path)]
    if x is None:
      return np.zeros(like.shape, like.dtype)
    x = jax_layout(np.asarray(x), channels)
    if x.shape != like.shape:
      raise ValueError(f'{path}: shape {x.shape}, expected {like.shape}')
    return x

  leaves = flatten(params).items()
  return unflatten({path: convert(path, like) for path, like in leaves})


def to_torch(params: PyTree, stats: PyTree, config: ConfigDict) -> Arrays:
  """Converts params and stats to the tensors of a PyTorch-MAML model.

  Inverts `from_torch`, apart from buffers that have no equivalent in maml_jax.

  Args:
    params: the parameters of a model of `config`.
    stats: its statistics.
    config: the config of the model. Layers with statistics of single episodes
      have buffers for `train.meta_batch_size` episodes in PyTorch-MAML.

  Returns:
    A state dict with all names that the model of PyTorch-MAML has.

  Raises:
    UserError: PyTorch-MAML has no such model.
  """
  bn = bn_args(config)
  channels = _channels(params)
  leaves = flatten(params)
  leaves |= {p[1:]: x for p, x in flatten(stats).items() if p[0] != EPISODE}
  state_dict = {
    torch_name(path): torch_layout(np.asarray(x), channels)
    for path, x in leaves.items()
  }
  if bn['track_running_stats']:
    for path, x in flatten(params['encoder']).items():
      if path[-1] == 'scale':
        layer = torch_name(('encoder', *path)).removesuffix('weight')
        is_episodic = path[0] in bn['episodic']
        num_episodes = config.train.meta_batch_size if is_episodic else 0
        buffers = _initial_buffers(bn, len(x), num_episodes)
        buffers = {layer + name: array for name, array in buffers.items()}
        state_dict = buffers | state_dict
  return state_dict


def _layer_modes(config: ConfigDict) -> dict[str, str]:
  """Returns the batch norm mode of each layer of the encoder."""
  norm = config.model.norm
  pairs = (('*', norm),) if isinstance(norm, str) else norm
  return {
    layer: next(
      mode for pattern, mode in pairs if fnmatch.fnmatchcase(layer, pattern)
    )
    for layer in abstract_variables(config)[0]['encoder']
  }


def bn_args(config: ConfigDict) -> dict:
  """Returns PyTorch-MAML's `bn_args` that are equivalent to a config.

  Raises:
    UserError: PyTorch-MAML has no such encoder or batch norm mode.
  """
  model = config.model
  if model.encoder not in ENCODERS.values() or model.width:
    width = f' of width {model.width}' if model.width else ''
    raise UserError(f'PyTorch-MAML has no equivalent of {model.encoder}{width}')
  if data.spec(config.data.name).image_shape[-1] != 3:
    raise UserError(
      f'PyTorch-MAML does not support {config.data.name}: its images are not '
      'in color'
    )
  if not model.norm_scale:
    raise UserError(
      'PyTorch-MAML does not support config.model.norm_scale=false'
    )
  modes = _layer_modes(config)
  used = set(modes.values())
  args = {'eps': model.norm_eps, 'track_running_stats': used != {'batch'}}
  if used == {'batch'}:
    return args
  args['episodic'] = [
    name for name, mode in modes.items() if not mode.endswith('global')
  ]
  if used <= {'tasknorm', 'tasknorm_global'}:
    return args | {'alpha': True}
  if used == {'cumulative'}:
    return args | {'momentum': None}
  if used <= {'global', 'episodic'}:
    return args
  raise UserError(
    f'PyTorch-MAML does not support config.model.norm={model.norm}'
  )


def _channels(params: PyTree) -> int:
  """Returns the channels of the last feature map."""
  last = params['encoder'].get('conv4')
  if last is None:  # residual networks average their last feature map
    return params['classifier']['kernel'].shape[0]
  return last['conv']['kernel'].shape[-1]


def _moment_names(stats: PyTree) -> list[str]:
  """Returns PyTorch-MAML's names of the moments in `stats`."""
  paths = flatten(stats)
  return [torch_name(path[1:]) for path in paths if path[0] != EPISODE]


def _initial_buffers(bn: Mapping, channels: int, num_episodes: int) -> Arrays:
  """Returns the initial buffers of one batch norm layer of PyTorch-MAML."""

  def moments(suffix, dtype):
    return {
      f'running_mean{suffix}': np.zeros(channels, np.float32),
      f'running_var{suffix}': np.ones(channels, np.float32),
      f'num_batches_tracked{suffix}': np.zeros((), dtype),
    }

  buffers = moments('', np.int64)
  for i in range(num_episodes):
    buffers |= moments(f'_{i}', np.int32)
  if bn.get('alpha'):
    buffers['batch_size'] = np.zeros((), np.int32)
  return buffers


def _check_tensors(tensors, params, stats, channels) -> None:
  """Raises UserError unless names, shapes and dtypes match params and stats."""
  shapes = {
    torch_name(path): torch_layout(np.empty(x.shape), channels).shape
    for path, x in flatten(params).items()
  }
  shapes |= {
    torch_name(path[1:]): x.shape
    for path, x in flatten(stats).items()
    if path[0] != EPISODE
  }
  problems = {
    'missing': [name for name in shapes if name not in tensors],
    'unexpected': [name for name in tensors if name not in shapes],
    'wrong shape': [
      f'{name} {list(np.shape(tensors[name]))}, expected {list(shape)}'
      for name, shape in shapes.items()
      if name in tensors and np.shape(tensors[name]) != shape
    ],
    'not floating point': [
      name for name, x in tensors.items() if np.asarray(x).dtype.kind != 'f'
    ],
  }
  messages = [f'{kind}: {_join(x)}' for kind, x in problems.items() if x]
  if messages:
    raise UserError(
      'the tensors do not match the config; ' + '; '.join(messages)
    )


def _join(names: Iterable[str]) -> str:
  names = list(names)
  more = len(names) - MAX_NAMES_IN_MESSAGE
  end = f' and {more} more' if more > 0 else ''
  return ', '.join(names[:MAX_NAMES_IN_MESSAGE]) + end
