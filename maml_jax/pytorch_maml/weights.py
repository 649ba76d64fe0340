"""Names and layouts of PyTorch-MAML's tensors, there and back.

There a convolution is [out, in, height, width] and a head [ways, features],
with the last map flattened channel by channel; here they are
[height, width, in, out] and [features, ways], flattened pixel by pixel.
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

# Encoders there -> here. # differs from PyTorch-MAML: its "resnet18" has one
# block per stage; here that is resnet10, and resnet18 has two.
ENCODERS = {
  'convnet4': 'convnet4',
  'wide-convnet4': 'wide_convnet4',
  'resnet12': 'resnet12',
  'wide-resnet12': 'wide_resnet12',
  'resnet18': 'resnet10',
  'wide-resnet18': 'wide_resnet10',
}

# What its layers keep and nothing here needs: running moments of layers that
# are not `global`, those of single episodes, and counts.
UNUSED_BUFFERS = re.compile(
  r'encoder\..*\.((running_mean|running_var)(_\d+)?'
  r'|num_batches_tracked(_\d+)?|batch_size)'
)
MAX_NAMES_IN_MESSAGE = (
  3  # as many tensors a complaint names; the others it counts
)

Path = tuple[str, ...]
Arrays = dict[str, np.ndarray]


def our_path(name: str) -> Path:
  """'encoder.encoder.conv1.bn.weight' -> ('encoder', 'conv1', 'bn', 'scale')"""
  *parts, leaf = name.replace('encoder.encoder.', 'encoder.').split('.')
  norm = any(part.startswith('bn') for part in parts)
  leaves = {
    'weight': 'scale' if norm else 'kernel',
    'temp': 'temperature',
    'running_mean': 'mean',
    'running_var': 'var',
  }
  parts = [part for part in parts if part != 'linear']
  return *parts, leaves.get(leaf, leaf)


def torch_name(path: Path) -> str:
  """('encoder', 'conv1', 'bn', 'scale') -> 'encoder.encoder.conv1.bn.weight'"""
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


def our_layout(x: np.ndarray, channels: int) -> np.ndarray:
  """A tensor as it is laid out here; `channels` are those of the last map."""
  if x.ndim == 4:
    return x.transpose(2, 3, 1, 0)
  if x.ndim == 2:
    x = x.reshape(len(x), channels, -1)
    return x.transpose(2, 1, 0).reshape(-1, len(x))
  return x


def torch_layout(x: np.ndarray, channels: int) -> np.ndarray:
  """The inverse of `our_layout`."""
  if x.ndim == 4:
    return x.transpose(3, 2, 0, 1)
  if x.ndim == 2:
    ways = x.shape[1]
    return x.reshape(-1, channels, ways).transpose(2, 1, 0).reshape(ways, -1)
  return x


def unflatten(leaves: Mapping[Path, PyTree]) -> PyTree:
  """{('a', 'b'): x} -> {'a': {'b': x}}"""
  tree = {}
  for path, leaf in leaves.items():
    node = tree
    for key in path[:-1]:
      node = node.setdefault(key, {})
    node[path[-1]] = leaf
  return tree


def flatten(tree: PyTree) -> dict[Path, PyTree]:
  """The inverse of `nest`."""
  return {
    tuple(key.key for key in path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def abstract_variables(config: ConfigDict) -> tuple[PyTree, PyTree]:
  """Shapes and dtypes of the params and stats of a config."""
  return _template(config_lib.to_json(config))


@functools.lru_cache(maxsize=8)
def _template(text: str) -> tuple[PyTree, PyTree]:
  config = config_lib.from_json(text)
  learner = setup.phase_learner(config, setup.train_phase(config))
  return jax.eval_shape(learner.init, jax.random.key(0))


def from_torch(
  state_dict: Mapping[str, np.ndarray], config: ConfigDict
) -> tuple[PyTree, PyTree]:
  """Converts the tensors of a PyTorch-MAML model.

  Args:
    state_dict: name -> array, named as its whole model names them:
      'encoder.encoder.conv1.conv.weight', 'classifier.linear.bias', ...
    config: says what they are to be, by its data, task and model.

  Returns:
    (params, stats), pytrees of NumPy arrays of the dtypes given. Statistics
    of a single episode are those that it begins with.

  Raises:
    UserError: the model has no equivalent, or names or shapes do not fit it.
  """
  bn_args(config)
  params, stats = abstract_variables(config)
  channels = _channels(params)
  given = {
    n: x for n, x in state_dict.items() if not UNUSED_BUFFERS.fullmatch(n)
  }
  given |= {n: state_dict[n] for n in _moments(stats) if n in state_dict}
  _check_shapes(given, params, stats, channels)

  moments = {
    path: np.full(x.shape, path[-1] == 'var', x.dtype)  # means etc. are 0
    if path[0] == EPISODE
    else np.asarray(state_dict[torch_name(path[1:])])
    for path, x in flatten(stats).items()
  }
  return params_from_names(state_dict, params), unflatten(moments)


def params_from_names(named: Mapping[str, np.ndarray | None], params: PyTree):
  """Arrays by name there as a pytree like `params`; zeros for None.

  Raises:
    ValueError: one is of another shape.
  """
  channels = _channels(params)

  def take(path, like):
    x = named[torch_name(path)]
    if x is None:
      return np.zeros(like.shape, like.dtype)
    x = our_layout(np.asarray(x), channels)
    if x.shape != like.shape:
      raise ValueError(f'{path}: {x.shape} for {like.shape}')
    return x

  return unflatten({path: take(path, x) for path, x in flatten(params).items()})


def to_torch(params: PyTree, stats: PyTree, config: ConfigDict) -> Arrays:
  """The inverse of `from_torch`.

  Args:
    params: of a model of `config`.
    stats: likewise.
    config: `train.meta_batch_size` is the number of episodes for which layers with
      moments of their own episodes have buffers there.

  Returns:
    A state_dict that its model loads with no name missing and none left over.

  Raises:
    UserError: PyTorch-MAML has no such model.
  """
  bn = bn_args(config)
  channels = _channels(params)
  named = flatten(params)
  named |= {p[1:]: x for p, x in flatten(stats).items() if p[0] != EPISODE}
  state_dict = {
    torch_name(path): torch_layout(np.asarray(x), channels)
    for path, x in named.items()
  }
  if bn['track_running_stats']:
    for path, x in flatten(params['encoder']).items():
      if path[-1] == 'scale':
        layer = torch_name(('encoder', *path)).removesuffix('weight')
        episodic = path[0] in bn['episodic']
        buffers = _buffers(bn, len(x), config.train.meta_batch_size * episodic)
        named = {layer + name: array for name, array in buffers.items()}
        state_dict = named | state_dict
  return state_dict


def layer_modes(config: ConfigDict) -> dict[str, str]:
  """The norm mode of each layer of the encoder."""
  norm = config.model.norm
  pairs = (('*', norm),) if isinstance(norm, str) else norm
  return {
    layer: next(m for glob, m in pairs if fnmatch.fnmatchcase(layer, glob))
    for layer in abstract_variables(config)[0]['encoder']
  }


def bn_args(config: ConfigDict) -> dict:
  """The arguments of PyTorch-MAML's batch norm that mean `config.model.norm`.

  Raises:
    UserError: there are none, or there is no such encoder.
  """
  model = config.model
  if model.encoder not in ENCODERS.values() or model.width:
    width = f' of width {model.width}' if model.width else ''
    raise UserError(f'PyTorch-MAML has no {model.encoder}{width} as here')
  if data.spec(config.data.name).image_shape[-1] != 3:
    raise UserError(f'PyTorch-MAML has no {config.data.name}: not in colour')
  if not model.norm_scale:
    raise UserError('PyTorch-MAML has no config.model.norm_scale=false')
  modes = layer_modes(config)
  kinds = set(modes.values())
  args = {'eps': model.norm_eps, 'track_running_stats': kinds != {'batch'}}
  if kinds == {'batch'}:
    return args
  args['episodic'] = [name for name, mode in modes.items() if mode != 'global']
  if kinds == {'tasknorm'}:
    return args | {'alpha': True}
  if kinds == {'cumulative'}:
    return args | {'momentum': None}
  if kinds <= {'global', 'episodic'}:
    return args
  raise UserError(f'PyTorch-MAML has no config.model.norm={model.norm}')


def _channels(params: PyTree) -> int:
  """Channels of the last map that the head sees."""
  last = params['encoder'].get('conv4')
  if last is None:  # a residual network, which averages its map
    return params['classifier']['kernel'].shape[0]
  return last['conv']['kernel'].shape[-1]


def _moments(stats: PyTree) -> list[str]:
  """Names there of the running moments that are kept here."""
  paths = flatten(stats)
  return [torch_name(path[1:]) for path in paths if path[0] != EPISODE]


def _buffers(bn: Mapping, channels: int, num_episodes: int) -> Arrays:
  """The buffers of one layer, as they are at first."""

  def moments(end, dtype):
    return {
      f'running_mean{end}': np.zeros(channels, np.float32),
      f'running_var{end}': np.ones(channels, np.float32),
      f'num_batches_tracked{end}': np.zeros((), dtype),
    }

  buffers = moments('', np.int64)
  for i in range(num_episodes):
    buffers |= moments(f'_{i}', np.int32)
  if bn.get('alpha'):
    buffers['batch_size'] = np.zeros((), np.int32)
  return buffers


def _check_shapes(given, params, stats, channels) -> None:
  """Names what is missing, what is left over, and what is of another shape."""
  shapes = {
    torch_name(path): torch_layout(np.empty(x.shape), channels).shape
    for path, x in flatten(params).items()
  }
  shapes |= {
    torch_name(path[1:]): x.shape
    for path, x in flatten(stats).items()
    if path[0] != EPISODE
  }
  other = [
    f'{name} {list(np.shape(given[name]))} for {list(shape)}'
    for name, shape in shapes.items()
    if name in given and np.shape(given[name]) != shape
  ]
  no_number = [n for n, x in given.items() if np.asarray(x).dtype.kind != 'f']
  problems = {
    'missing': [name for name in shapes if name not in given],
    'unexpected': [name for name in given if name not in shapes],
    'of another shape': other,
    'not of floating point': no_number,
  }
  said = [f'{what}: {_listed(x)}' for what, x in problems.items() if x]
  if said:
    raise UserError('the tensors do not fit the config; ' + '; '.join(said))


def _listed(names: Iterable[str]) -> str:
  names = list(names)
  more = len(names) - MAX_NAMES_IN_MESSAGE
  end = f' and {more} more' if more > 0 else ''
  return ', '.join(names[:MAX_NAMES_IN_MESSAGE]) + end
