"""Initial heads for any number of classes.

Legend: N images, W classes, D features.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from maml_jax.types import Batch, Model, PyTree

__all__ = [
  'HEADS',
  'PROTOTYPE_SCALE',
  'default_head',
  'make_initial_head',
]

HEADS = ('checkpoint', 'zero', 'prototype')
# Difference between two logits of a prototype head if the squared distances to
# the two prototypes differ by the mean squared distance between prototypes.
PROTOTYPE_SCALE = 4.0


def default_head(config: ConfigDict, ways: int) -> str:
  """Returns the head of a checkpoint for `ways` classes, one of `HEADS`.

  Args:
    config: the config of the checkpoint.
    ways: W.
  """
  if config.inner.head == 'zero':
    return 'zero'
  return 'checkpoint' if ways <= config.task.ways else 'prototype'


def make_initial_head(
  head: str,
  encoder: Model,
  params: PyTree,
  stats: PyTree,
  support: Batch,
  ways: int,
) -> PyTree:
  """Returns the parameters of the head before the first inner step.

  Args:
    head: one of `HEADS`; 'checkpoint' takes the first W outputs.
    encoder: the model without its head.
    params: the parameters of a checkpoint.
    stats: its statistics.
    support: the support set, for the prototypes.
    ways: W.

  Returns:
    params['classifier'] with kernel [D, W] and bias [W]; other parameters, such
    as a temperature, are unchanged.
  """
  classifier = params['classifier']
  if head == 'checkpoint':
    outputs = {
      name: classifier[name][..., :ways] for name in ('kernel', 'bias')
    }
  elif head == 'zero':
    features = classifier['kernel'].shape[0]
    outputs = {'kernel': jnp.zeros((features, ways)), 'bias': jnp.zeros(ways)}
  else:
    outputs = _prototype_head(encoder, params, stats, support, ways)
  return {**classifier, **outputs}


def _prototype_head(
  encoder: Model, params: PyTree, stats: PyTree, support: Batch, ways: int
) -> PyTree:
  """Returns the nearest-centroid classifier as a linear layer.

  |x - m|^2 = |x|^2 - 2 m.x + |m|^2, where |x|^2 is the same for all classes.
  Proto-MAML, Triantafillou et al. 2020, arXiv 1903.03096.
  """
  params = {'encoder': params['encoder']}
  features, _ = encoder.apply(params, stats, support.inputs, train=True)
  one_hot = jax.nn.one_hot(support.targets, ways)
  means = one_hot.T @ features / one_hot.sum(0)[:, None]
  center = means.mean(0)  # subtracted to reduce rounding errors
  means = means - center[None]
  squares = jnp.square(means).sum(-1)
  mean_distance = 2 * squares.sum() / (ways - 1)
  scale = PROTOTYPE_SCALE / jnp.maximum(mean_distance, 1e-6)
  return {
    'kernel': 2 * scale * means.T,
    'bias': -scale * (squares + 2 * means @ center),
  }
