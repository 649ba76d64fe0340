"""Transfers the parameters of a checkpoint to another learner."""

from functools import partial

import jax
import numpy as np

from maml_jax.inner_loop import model_params, transfer_learned
from maml_jax.learner import Learner
from maml_jax.types import EPISODE, INNER, SUPPORT, PyTree
from maml_jax.utils.errors import UserError

__all__ = ['transfer_params']


def transfer_params(
  learner: Learner, params: PyTree, stats: PyTree
) -> tuple[PyTree, PyTree]:
  """Converts the params and stats of a checkpoint to those of a learner.

  The learner may use another norm mode or learn other quantities of the inner
  loop. If it has another number of ways, its head is newly initialized. Where
  only the checkpoint has a value for each step, the first one is used.

  Args:
    learner: from `setup.phase_learner`.
    params: the parameters of a checkpoint.
    stats: its statistics.

  Returns:
    (params, stats) as the functions of `learner` take them.

  Raises:
    UserError: the learner needs parameters or statistics that are missing.
  """

  def take(tree, path, wanted):
    for key in path:
      tree = tree.get(key.key, {})
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if isinstance(tree, dict):
      raise UserError(
        f'norm needs {name}, which the checkpoint lacks: it was trained with '
        'another config.model.norm or config.model.encoder; use a norm mode '
        'whose statistics it has'
      )
    if tree.shape == wanted.shape:
      return tree
    if not name.startswith('classifier/'):
      raise UserError(
        f'{name} has shape {tree.shape} in the checkpoint, expected '
        f'{wanted.shape}: it belongs to another model or data set'
      )
    return fresh_head[path[-1].key]

  def init_fresh(key):  # under jit, so that unused parts are not computed
    params, stats = learner.init(key)
    fresh_stats = {k: stats[k] for k in (EPISODE, SUPPORT) if k in stats}
    return params.get('classifier', {}), params.get(INNER, {}), fresh_stats

  key = jax.random.key(0)
  fresh_head, fresh_learned, fresh_stats = jax.jit(init_fresh)(key)
  wanted_params, wanted_stats = jax.eval_shape(learner.init, key)
  kept = {k: x for k, x in wanted_stats.items() if k not in fresh_stats}
  wanted = {k: x for k, x in wanted_params.items() if k != INNER}
  with_path = jax.tree_util.tree_map_with_path
  new_params = with_path(partial(take, model_params(params)), wanted)
  if fresh_learned:
    ways = _num_ways(params), _num_ways(wanted)
    new_params[INNER] = transfer_learned(
      learner.inner, params, fresh_learned, ways
    )
  return new_params, with_path(partial(take, stats), kept) | fresh_stats


def _num_ways(params: PyTree) -> int:
  """Returns the number of outputs of the head."""
  return params.get('classifier', {'kernel': np.zeros(0)})['kernel'].shape[-1]
