"""The learned quantities of the inner loop besides the initial parameters.

`params['inner']` holds them as nested dicts. PATH is that of an adapted
parameter, and a star marks a leading axis of K rows, one per inner step:

    lr/encoder, lr/classifier       [] rates per group
    lr/PATH                         [] per tensor, or the shape of the parameter
    per_step/PATH                   * a parameter with separate values per step
    precondition/PATH/scale         [n]; or, for kernels, matrices per axis:
    precondition/PATH/{in,out,spatial}
    alfa/lr/PATH, alfa/decay/PATH   * factors of ALFA's rates and decays
    alfa/mlp/{linear1,linear2}      ALFA's network

Rates have rows if `per_step` contains 'lr'. The inner loop does not adapt any
of it, and the model does not see it. A parameter with separate values per step
is stored here only.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax.inner_loop.parameters import (
  CLASSIFIER,
  flatten,
  merge,
  param_labels,
  path_matches,
  require_matches,
  select,
)
from maml_jax.learner_config import InnerConfig
from maml_jax.types import INNER, Array, PyTree
from maml_jax.utils.errors import UserError

__all__ = [
  'clip_learned_rates',
  'is_per_step',
  'init_learned',
  'learned_ranges',
  'model_params',
  'rate_table',
  'split_learned',
  'split_per_step',
  'transfer_learned',
]


def init_learned(config: InnerConfig, params: PyTree, key: Array) -> PyTree:
  """Adds the learned quantities of the inner loop to initial parameters.

  Learning rates start at the configured ones, preconditioners at the identity,
  and ALFA as gradient descent with the configured rates and weight decay.

  Args:
    config: the settings of the inner loop.
    params: the initial parameters of the model.
    key: a random key.

  Returns:
    `params`, with an additional key 'inner' if anything is learned.

  Raises:
    UserError: `params` are no nested dicts, or have a key 'inner' already; a
      pattern of `config.per_step` matches no parameter, or one that is adapted.
  """
  if isinstance(params, Mapping) and INNER in params:
    raise UserError(
      f"the model's params have a top-level key {INNER!r}, which is reserved "
      'for learned quantities of the inner loop: rename it'
    )
  if not config.has_learned:
    return params
  if not isinstance(params, Mapping):
    raise UserError(
      'learned rates, per-step parameters, preconditioners and ALFA need '
      f'params that are nested dicts, not {type(params).__name__}'
    )
  labels = param_labels(config, params)
  patterns = [pattern for pattern in config.per_step if pattern != 'lr']
  require_matches('inner.per_step', patterns, labels)

  def is_per_step(path):
    return any(path_matches(pattern, path) for pattern in patterns)

  def is_adapted(path):
    return labels[path] != 'frozen'

  for path in labels:
    if is_per_step(path) and is_adapted(path):
      raise UserError(
        f'inner.per_step: {path} is adapted in the inner loop; add it to '
        'inner.frozen'
      )

  def add_rows(x):
    return jnp.repeat(x[None], max(config.num_steps, 1), axis=0)

  learned = {
    'lr': _init_rates(config, params, labels, add_rows),
    'per_step': select(
      params, lambda path, x: add_rows(x) if is_per_step(path) else None
    ),
  }
  adapted = select(params, lambda path, x: x if is_adapted(path) else None)
  if config.precondition == 'kronecker':
    learned['precondition'] = select(adapted, lambda _, x: _init_factors(x))
  if config.rule == 'alfa':
    learned['alfa'] = _init_alfa(config, adapted, labels, add_rows, key)
  kept = select(params, lambda path, x: None if is_per_step(path) else x)
  return {**kept, INNER: {kind: learned[kind] for kind in _kinds(config)}}


def split_learned(params: PyTree) -> tuple[PyTree, dict]:
  """Splits meta-parameters into those of the model and the learned quantities.

  Returns:
    The parameters that the model takes, in which those with separate values per
    step have their first; and the learned quantities, {} if there are none.
  """
  if not (isinstance(params, Mapping) and INNER in params):
    return params, {}
  learned = params[INNER]
  rest = {key: value for key, value in params.items() if key != INNER}
  first_rows = jax.tree.map(lambda x: x[0], learned.get('per_step', {}))
  return merge(rest, first_rows), learned


def model_params(params: PyTree) -> PyTree:
  """Returns the parameters that the model takes; see `split_learned`."""
  return split_learned(params)[0]


def clip_learned_rates(config: InnerConfig, params: PyTree) -> PyTree:
  """Returns meta-parameters with learned rates within `config.lr_bounds`."""
  if not config.lr_bounds:
    return params
  learned = params[INNER]
  lowest, highest = config.lr_bounds
  rates = jax.tree.map(lambda x: jnp.clip(x, lowest, highest), learned['lr'])
  return {**params, INNER: {**learned, 'lr': rates}}


def learned_ranges(params: PyTree) -> dict[str, Array]:
  """Returns the smallest and largest value of each learned quantity.

  Args:
    params: the meta-parameters.

  Returns:
    Such as {'lr_min': [], 'lr_max': []}; {} if nothing is learned.
  """
  learned = split_learned(params)[1]
  if 'alfa' in learned:
    learned = {k: learned['alfa'][k] for k in ('lr', 'decay')}
  ranges = {}
  for kind, tree in learned.items():
    leaves = jax.tree.leaves(tree)
    ranges[f'{kind}_min'] = jnp.stack([x.min() for x in leaves]).min()
    ranges[f'{kind}_max'] = jnp.stack([x.max() for x in leaves]).max()
  return ranges


def rate_table(
  params: PyTree, *, per_step: bool
) -> tuple[list[str], np.ndarray]:
  """Returns parameter names, and the means of their rates [names, steps].

  Args:
    params: meta-parameters with learned rates, or those of ALFA.
    per_step: whether the rates have a leading axis of inner steps; if not, the
      means have one column.
  """
  learned = split_learned(params)[1]
  rates, _ = flatten(learned.get('lr') or learned['alfa']['lr'])
  means = [
    np.reshape(x, (len(x) if per_step else 1, -1)).mean(1)
    for x in rates.values()
  ]
  return list(rates), np.stack(means)


def is_per_step(config: InnerConfig, path: str) -> bool:
  """Returns whether a learned quantity has a leading axis of inner steps."""
  prefixes = ('per_step/', 'alfa/lr/', 'alfa/decay/')
  return path.startswith(
    (*prefixes, 'lr/') if 'lr' in config.per_step else prefixes
  )


def split_per_step(config: InnerConfig, learned: dict) -> tuple[dict, dict]:
  """Splits learned quantities into constant ones and those per inner step.

  Args:
    config: the settings of the inner loop.
    learned: from `split_learned`.

  Returns:
    {path: array} of the constant ones, and {path: [num_steps, ...]} of the
    others. Where there are fewer rows than steps, the last one is repeated.

  Raises:
    UserError: the learned quantities are not those of the config.
  """
  if {*learned} != {*_kinds(config)}:
    raise UserError(
      f"params['{INNER}'] has {sorted(learned) or 'nothing'}, but the settings "
      f'learn {_kinds(config)}: use the params of learner.init, or the '
      'settings they were trained with'
    )
  flat, _ = flatten(learned)
  constant, rows = {}, {}
  for path, value in flat.items():
    if not is_per_step(config, path):
      constant[path] = value
    elif len(value) == config.num_steps:
      rows[path] = value
    else:
      at = jnp.minimum(jnp.arange(config.num_steps), len(value) - 1)
      rows[path] = value[at]
  return constant, rows


def transfer_learned(
  config: InnerConfig, params: PyTree, fresh: dict, ways: tuple[int, int]
) -> dict:
  """Converts the learned quantities of a checkpoint to those of a config.

  Missing ones are fresh, except that parameters which now have separate values
  per step start with the value they had. For another number of ways, values
  along the axis of the classes are averaged, so that they do not depend on the
  order of the classes. The number of rows does not change.

  Args:
    config: the settings of the inner loop.
    params: the meta-parameters of the checkpoint.
    fresh: the learned quantities of `init_learned`.
    ways: the number of classes of the checkpoint and the wanted one.
  """
  shared, learned = split_learned(params)
  saved, _ = flatten({k: v for k, v in learned.items() if k in _kinds(config)})
  values, _ = flatten(shared)
  wanted, unflatten = flatten(fresh)
  result = {}
  for path, x in wanted.items():
    kind, _, name = path.partition('/')
    if path in saved:
      axes = _class_axes(config, path) if ways[0] != ways[1] else ()
      result[path] = _average_classes(saved[path], axes, ways[1])
    elif kind == 'per_step' and name in values:
      result[path] = jnp.broadcast_to(values[name][None], x.shape)
    else:
      result[path] = x
  return unflatten(result)


def _kinds(config: InnerConfig) -> list[str]:
  """Returns the keys of params['inner']."""
  is_used = {
    'lr': config.learn_lr != 'none',
    'per_step': any(pattern != 'lr' for pattern in config.per_step),
    'precondition': config.precondition != 'none',
    'alfa': config.rule == 'alfa',
  }
  return [kind for kind, used in is_used.items() if used]


def _class_axes(config: InnerConfig, path: str) -> tuple[int, ...]:
  """Returns the axes of a learned quantity that enumerate the classes."""
  kind, _, name = path.partition('/')
  if not path_matches(CLASSIFIER, name):
    return ()
  if kind == 'precondition':
    return {'out': (-2, -1), 'scale': (-1,)}.get(name.rsplit('/', 1)[-1], ())
  has_axis = kind == 'per_step' or (
    kind == 'lr' and config.learn_lr == 'parameter'
  )
  return (-1,) if has_axis else ()


def _average_classes(x: Array, axes: tuple[int, ...], ways: int) -> Array:
  """Averages x over classes and repeats the average for `ways` classes."""
  if len(axes) < 2:
    for axis in axes:
      mean = x.mean(axis, keepdims=True)
      x = jnp.repeat(mean, ways, axis)
    return x
  old = x.shape[-1]
  diagonal = jnp.trace(x) / old
  others = (x.sum() - jnp.trace(x)) / (old * (old - 1))
  eye = jnp.eye(ways, dtype=x.dtype)
  return diagonal * eye + others * (1 - eye)


def _init_rates(config: InnerConfig, params, labels, add_rows) -> dict:
  rates = {
    'encoder': config.encoder_lr,
    'classifier': config.classifier_lr,
  }

  def rate(group, shape, dtype):
    value = jnp.full(shape, rates[group], dtype)
    return add_rows(value) if 'lr' in config.per_step else value

  def leaf(path, x):
    if labels[path] == 'frozen':
      return None
    shape = () if config.learn_lr == 'tensor' else x.shape
    return rate(labels[path], shape, x.dtype)

  if config.learn_lr == 'none':
    return {}
  if config.learn_lr == 'group':
    dtypes = {labels[path]: x.dtype for path, x in flatten(params)[0].items()}
    return {g: rate(g, (), d) for g, d in dtypes.items() if g in rates}
  return select(params, leaf)


def _init_factors(x: Array) -> dict:
  """Returns the preconditioner of one parameter, which is the identity."""
  if x.ndim < 2:
    return {'scale': jnp.ones_like(x)}
  *spatial, inputs, outputs = x.shape
  sizes = {'in': inputs, 'out': outputs}
  if spatial:
    sizes['spatial'] = math.prod(spatial)
  return {name: jnp.eye(size, dtype=x.dtype) for name, size in sizes.items()}


def _init_alfa(config: InnerConfig, adapted, labels, add_rows, key) -> dict:
  if not adapted:  # such as for baselines
    return {}
  rates = {'encoder': config.encoder_lr, 'classifier': config.classifier_lr}

  def factors(decay):
    return select(
      adapted,
      lambda path, x: add_rows(
        jnp.full((), rates[labels[path]] * decay, x.dtype)
      ),
    )

  leaves = jax.tree.leaves(adapted)
  size, dtype = 2 * len(leaves), jnp.result_type(*leaves)
  bound = size**-0.5
  return {
    'lr': factors(1.0),
    'decay': factors(config.weight_decay),
    'mlp': {
      'linear1': {
        'kernel': jax.random.uniform(
          key, (size, size), dtype, minval=-bound, maxval=bound
        ),
        'bias': jnp.zeros(size, dtype),
      },
      # The network starts as the constant 1.
      'linear2': {
        'kernel': jnp.zeros((size, size), dtype),
        'bias': jnp.ones(size, dtype),
      },
    },
  }
