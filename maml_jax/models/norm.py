"""Batch normalisation in every mode that few-shot learning uses.

All modes normalise the support pass of meta-training by the moments of the
batch at hand. They differ in what the *query* pass is normalised by, which
decides whether a prediction may depend on the other query images:

    mode        query pass normalised by                            inductive
    batch       moments of the query set                            no
    global      running moments carried over from task to task      yes
    episodic    running moments kept within the task, from 0 and 1  yes
    cumulative  plain mean of the moments over the inner steps      yes
    support     moments of the support set under the final weights  yes
    tasknorm    episodic ones blended with each image's own         yes

`episodic` and `global` are PyTorch-MAML's; `tasknorm` is its `alpha` option,
after Bronskill et al. 2020, arXiv 2003.03284.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from maml_jax import ops
from maml_jax.types import EPISODE, SUPPORT

MODES = ('batch', 'global', 'episodic', 'cumulative', 'support', 'tasknorm')
_COLLECTIONS = {'global': 'global', 'support': SUPPORT}


class BatchNorm(nn.Module):
  """Normalises the channels of [N, H, W, C].

  Attributes:
    mode: one of `MODES`.
    meta_test: layers of mode `global` normalise the support pass by their
      running moments too, and leave them as they are.
    momentum: weight of the old running moments (PyTorch's momentum is one
      minus this).
    epsilon: added to the variance.
    use_scale: without it only a bias is learned, as in the official MAML.

  No derivative flows through running moments. The running variance is
  unbiased, the one that a batch is normalised by is not, as in PyTorch. Mode
  `support` keeps no running moments but the batch's own, derivative and all.
  All is reckoned in float32 where the images are of a narrower type.
  """

  mode: str = 'batch'
  meta_test: bool = False
  momentum: float = 0.9
  epsilon: float = 1e-5
  use_scale: bool = True

  @nn.compact
  def __call__(self, x, shift=None, *, train, pool=False):
    """Normalises; then, with `pool`, takes the maxima of 2 x 2 windows.

    Args:
      x: [N, H, W, C].
      shift: [C], normalise `x + shift`.
      train: whether this is the support pass.
      pool: whether to halve height and width.
    """
    dtype, channels = x.dtype, x.shape[-1:]
    x = x.astype(jnp.promote_types(dtype, jnp.float32))
    scale = (
      self.param('scale', nn.initializers.ones, channels, jnp.float32)
      if self.use_scale
      else jnp.ones(channels, x.dtype)
    )
    bias = self.param('bias', nn.initializers.zeros, channels, jnp.float32)
    shift = 0.0 if shift is None else _channels(shift)
    mean, var = self._moments(x, shift, train)
    factor = _channels(scale) * lax.rsqrt(var + self.epsilon)
    if pool:
      x = ops.max_pool(x, factor)
    bias = _channels(bias) - (mean - shift) * factor
    return (x * factor + bias).astype(dtype)

  def _moments(self, x, shift, train):
    """The moments of `x + shift` to normalise by: [1 or N, 1, 1, C]."""

    def moments_over(axes):
      mean, var = moments(x, axes)
      return mean + shift, var

    if self.mode == 'batch':
      return moments_over((0, 1, 2))
    collection = _COLLECTIONS.get(self.mode, EPISODE)
    channels = x.shape[-1:]
    mean = self.variable(collection, 'mean', jnp.zeros, channels, x.dtype)
    var = self.variable(collection, 'var', jnp.ones, channels, x.dtype)
    if self.mode == 'tasknorm':
      zero = nn.initializers.zeros, (), jnp.float32
      alpha_scale = self.param('alpha_scale', *zero)
      alpha_offset = self.param('alpha_offset', *zero)
      size = self.variable(EPISODE, 'size', jnp.zeros, (), x.dtype)
    old_weight = self._old_weight(train)
    if train and not (self.mode == 'global' and self.meta_test):
      batch_mean, batch_var = moments_over((0, 1, 2))
      if self.mode == 'support':
        mean.value, var.value = batch_mean.ravel(), batch_var.ravel()
      elif not self.is_initializing():
        n = x.size // x.shape[-1]
        _blend(mean, batch_mean, old_weight)
        _blend(var, batch_var * (n / max(n - 1, 1)), old_weight)
      if self.mode == 'tasknorm':
        size.value = 0 * size.value + x.shape[0]
      return batch_mean, batch_var
    mean, var = _channels(mean.value), _channels(var.value)
    if self.mode != 'tasknorm':
      return mean, var
    a = jax.nn.sigmoid(alpha_scale * size.value + alpha_offset)
    own_mean, own_var = moments_over((1, 2))
    distance = jnp.square(own_mean - mean)
    return (
      a * mean + (1 - a) * own_mean,
      a * var + (1 - a) * own_var + a * (1 - a) * distance,
    )

  def _old_weight(self, train):
    """What the running moments keep of themselves at this support pass."""
    if self.mode != 'cumulative':
      return self.momentum
    count = self.variable(EPISODE, 'count', jnp.zeros, ())
    if train and not self.is_initializing():
      count.value = count.value + 1
    return 1 - 1 / jnp.maximum(count.value, 1)


def moments(x, axes):
  """Mean and biased variance over `axes`, which are kept with size 1."""
  mean = x.mean(axes, keepdims=True)
  return mean, jnp.square(x - mean).mean(axes, keepdims=True)


def _channels(vector):
  """[C] -> [1, 1, 1, C]"""
  return vector.reshape(1, 1, 1, -1)


def _blend(running, new, old_weight):
  new = lax.stop_gradient(new).ravel()
  running.value = old_weight * running.value + (1 - old_weight) * new
