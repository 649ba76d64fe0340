"""Initial heads for any number of classes.

Legend: N images, W classes, D features.
"""

import jax.numpy as jnp

from maml_jax import inner_loop
from maml_jax.learner import Learner
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


def default_head(learner: Learner, params: PyTree, num_steps: int) -> str:
  """Returns the head that `fit` uses by default, 'zero' or 'prototype'.

  With both, the names and the order of the classes do not change the answers,
  unlike with the outputs of a checkpoint. It is 'prototype' if the checkpoint
  was trained with it, or if the head is not adapted.

  Args:
    learner: of the checkpoint.
    params: its meta-parameters.
    num_steps: inner steps.
  """
  inner = learner.inner
  labels = inner_loop.param_labels(inner, inner_loop.model_params(params))
  is_frozen = 'classifier' not in labels.values()
  has_fixed_rate = inner.learn_lr == 'none' and inner.rule == 'none'
  is_still = not num_steps or (has_fixed_rate and not inner.classifier_lr)
  if inner.head == 'prototype' or is_frozen or is_still:
    return 'prototype'
  return 'zero'


def make_initial_head(
  head: str,
  model: Model,
  params: PyTree,
  stats: PyTree,
  support: Batch,
  ways: int,
) -> PyTree:
  """Returns the parameters of the head before the first inner step.

  Args:
    head: one of `HEADS`; 'checkpoint' takes the first W outputs.
    model: with `features`, for the prototypes.
    params: the meta-parameters of a checkpoint.
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
    outputs = _prototype_head(model, params, stats, support, ways)
  return {**classifier, **outputs}


def _prototype_head(
  model: Model, params: PyTree, stats: PyTree, support: Batch, ways: int
) -> PyTree:
  """Returns the nearest-centroid classifier as a linear layer.

  |x - m|^2 = |x|^2 - 2 m.x + |m|^2, where |x|^2 is the same for all classes.
  Proto-MAML, Triantafillou et al. 2020, arXiv 1903.03096.
  """
  params = inner_loop.model_params(params)
  assert model.features is not None
  features, _ = model.features(params, stats, support.inputs, train=True)
  means = inner_loop.class_means(features, support.targets, ways)
  center = means.mean(0)  # subtracted to reduce rounding errors
  means = means - center[None]
  squares = jnp.square(means).sum(-1)
  mean_distance = 2 * squares.sum() / (ways - 1)
  scale = PROTOTYPE_SCALE / jnp.maximum(mean_distance, 1e-6)
  return {
    'kernel': 2 * scale * means.T,
    'bias': -scale * (squares + 2 * means @ center),
  }
