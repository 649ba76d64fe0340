"""The head that a task starts from, and class weights of a support set."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from maml_jax.inner_loop.learned import model_params
from maml_jax.inner_loop.parameters import (
  CLASSIFIER,
  flatten_model,
  path_matches,
)
from maml_jax.types import Array, Batch, Model, PyTree
from maml_jax.utils.errors import UserError

__all__ = ['balanced_loss', 'class_means', 'with_prototypes']


def with_prototypes(
  model: Model, params: PyTree, stats: PyTree, support: Batch
) -> tuple[PyTree, PyTree]:
  """Sets the head to the prototypes of a support set.

  With the mean c of the features of a class under the initial parameters, its
  kernel column is 2c and its bias -|c|^2, so that the logits are minus squared
  distances to c up to a constant per query. Derivatives flow through c.

  ProtoMAML, Triantafillou et al. 2020, arXiv 1903.03096, section 3.

  Args:
    model: with `features`.
    params: the meta-parameters, with a head of kernel [D, W] and bias [W].
    stats: its statistics.
    support: W*S images and their labels.

  Returns:
    The parameters with the new head, and the statistics after the pass.

  Raises:
    UserError: the parameters have no such head.
  """
  flat, unflatten = flatten_model(params)
  head = {p.rsplit('/', 1)[-1]: p for p in flat if path_matches(CLASSIFIER, p)}
  if not {'kernel', 'bias'} <= head.keys() or flat[head['kernel']].ndim != 2:
    raise UserError(
      "inner.head='prototype' needs params classifier/kernel [D, W] and "
      f'classifier/bias [W]; available: {", ".join(sorted(flat))}'
    )
  ways = flat[head['kernel']].shape[1]
  assert model.features is not None
  features, stats = model.features(
    model_params(params), stats, support.inputs, train=True
  )
  features = features.astype(flat[head['kernel']].dtype)
  means = class_means(features, support.targets, ways)
  flat[head['kernel']] = 2 * means.T
  flat[head['bias']] = -jnp.square(means).sum(1)
  return unflatten(flat), stats


def class_means(features: Array, targets: Array, ways: int) -> Array:
  """Returns the mean of the features [N, D] of each class, [W, D].

  The mean of a class without examples is 0.
  """
  one_hot = jax.nn.one_hot(targets, ways, dtype=features.dtype)
  counts = jnp.maximum(one_hot.sum(0), 1)
  return (one_hot.T @ features) / counts[:, None]


def balanced_loss(loss_fn: Callable, outputs: Array, targets: Array) -> Array:
  """Returns a loss in which each class has the same weight.

  An example of class c has weight N / (W n_c), with n_c examples of that class
  among N, and the sum is divided by N.

  Args:
    loss_fn: `loss_fn(outputs, targets) -> []`, the mean over a batch.
    outputs: logits [N, W].
    targets: [N] int classes.
  """
  counts = jax.nn.one_hot(targets, outputs.shape[-1]).sum(0)
  losses = jax.vmap(lambda o, t: loss_fn(o[None], t[None]))(outputs, targets)
  weights = 1 / (outputs.shape[-1] * counts[targets])
  return losses @ weights.astype(losses.dtype)
