"""Batch normalization in seven modes used in few-shot learning.

All modes normalize the support pass of meta-training by the moments of the
support set. They differ in the moments that normalize the *query* pass. A mode
is inductive if a prediction does not depend on the other query images:

    mode        moments that normalize the query pass            inductive
    batch       moments of the query set                         no
    global      running moments over all tasks                   yes
    episodic    running moments over the inner steps of the      yes
                task, starting from mean 0 and variance 1
    cumulative  average of the moments over the inner steps      yes
    support     moments of the support set under the adapted     yes
                parameters
    tasknorm    `episodic`, blended with the moments of each     yes
                image
    tasknorm_global
                `global`, blended with the moments of each       yes
                image

`episodic` and `global` are PyTorch-MAML's modes; `tasknorm` and
`tasknorm_global` are the same with its `alpha` option, after Bronskill et al.
2020, arXiv 2003.03284.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from maml_jax import ops
from maml_jax.types import EPISODE, SUPPORT, Array

__all__ = ['MODES', 'BatchNorm', 'moments']

MODES = (
  'batch',
  'global',
  'episodic',
  'cumulative',
  'support',
  'tasknorm',
  'tasknorm_global',
)
# Mode -> key of its moments in the stats; EPISODE for the other modes.
_COLLECTIONS = {
  'global': 'global',
  'support': SUPPORT,
  'tasknorm_global': 'global',
}


class BatchNorm(nn.Module):
  """Batch normalization of the channels of [N, H, W, C].

  No derivative flows through running moments. As in PyTorch, running variances
  are unbiased, but a batch is normalized by its biased variance. Mode `support`
  stores the moments of the support set, which do have derivatives. Everything
  is computed at least in float32.

  Attributes:
    mode: one of `MODES`.
    meta_test: whether layers with global running moments normalize the support
      pass by them, too, without updating them.
    momentum: weight of the old running moments in an update (one minus
      PyTorch's momentum).
    epsilon: added to the variance.
    use_scale: whether there is a scale in addition to the bias; without it, as
      in the official MAML code.
  """

  mode: str = 'batch'
  meta_test: bool = False
  momentum: float = 0.9
  epsilon: float = 1e-5
  use_scale: bool = True

  @nn.compact
  def __call__(self, x, shift=None, *, train, pool=False):
    """Normalizes `x + shift`, then applies max pooling if `pool` is true.

    Args:
      x: [N, H, W, C].
      shift: [C]; default 0.
      train: whether this is the support pass.
      pool: whether to apply 2 x 2 max pooling.

    Returns:
      An array with the dtype of `x`, [N, H, W, C] or [N, H // 2, W // 2, C].
    """
    channels = (x.shape[-1] // ops.num_merged_tasks(),)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    scale = (
      self.param('scale', nn.initializers.ones, channels, jnp.float32)
      if self.use_scale
      else jnp.ones(channels, wide)
    )
    bias = self.param('bias', nn.initializers.zeros, channels, jnp.float32)
    shift = 0.0 if shift is None else _channels(shift)
    mean, var = self._moments(x.astype(wide), shift, train)
    factor = _channels(scale) * lax.rsqrt(var + self.epsilon)
    bias = ops.merge_channels(_channels(bias) - (mean - shift) * factor)
    factor = ops.merge_channels(factor)
    y = ops.max_pool(x, factor) if pool else x  # a narrow dtype moves less
    return (y.astype(wide) * factor + bias).astype(x.dtype)

  def _moments(self, x, shift, train):
    """Returns the mean and variance to normalize `x + shift` by.

    Updates the stored moments in a support pass.

    Returns:
      mean and variance, each [1 or N, 1, 1, C].
    """

    def moments_over(axes):
      mean, var = map(ops.split_channels, moments(x, axes))
      return mean + shift, var

    if self.mode == 'batch':
      return moments_over((0, 1, 2))
    collection = _COLLECTIONS.get(self.mode, EPISODE)
    channels = (x.shape[-1] // ops.num_merged_tasks(),)
    mean = self.variable(collection, 'mean', jnp.zeros, channels, x.dtype)
    var = self.variable(collection, 'var', jnp.ones, channels, x.dtype)
    blends = self.mode.startswith('tasknorm')
    if blends:
      zero = nn.initializers.zeros, (), jnp.float32
      alpha_scale = self.param('alpha_scale', *zero)
      alpha_offset = self.param('alpha_offset', *zero)
      size = self.variable(EPISODE, 'size', jnp.zeros, (), x.dtype)
    old_weight = self._old_weight(train)
    if train and blends:
      # A sum with the old value keeps its dtype and varying mesh axes.
      size.value = 0 * size.value + x.shape[0]
    if train and not (collection == 'global' and self.meta_test):
      batch_mean, batch_var = moments_over((0, 1, 2))
      if self.mode == 'support':
        mean.value, var.value = batch_mean.ravel(), batch_var.ravel()
      elif not self.is_initializing():
        n = x.size // x.shape[-1]
        _update_running(mean, batch_mean, old_weight)
        _update_running(var, batch_var * (n / max(n - 1, 1)), old_weight)
      return batch_mean, batch_var
    mean, var = _channels(mean.value), _channels(var.value)
    if train or not blends:
      return mean, var
    alpha = jax.nn.sigmoid(alpha_scale * size.value + alpha_offset)
    image_mean, image_var = moments_over((1, 2))
    distance = jnp.square(image_mean - mean)
    return (
      alpha * mean + (1 - alpha) * image_mean,
      alpha * var + (1 - alpha) * image_var + alpha * (1 - alpha) * distance,
    )

  def _old_weight(self, train):
    """Returns the weight of the old running moments in this update."""
    if self.mode != 'cumulative':
      return self.momentum
    count = self.variable(EPISODE, 'count', jnp.zeros, ())
    if train and not self.is_initializing():
      count.value = count.value + 1
    return 1 - 1 / jnp.maximum(count.value, 1)


def moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
  """Returns the mean and biased variance over `axes`, kept with size 1."""
  mean = x.mean(axes, keepdims=True)
  return mean, jnp.square(x - mean).mean(axes, keepdims=True)


def _channels(vector):
  """Reshapes [C] to [1, 1, 1, C]."""
  return vector.reshape(1, 1, 1, -1)


def _update_running(running, new, old_weight):
  """Updates a running moment, without derivatives."""
  new = lax.stop_gradient(new).ravel()
  running.value = old_weight * running.value + (1 - old_weight) * new
