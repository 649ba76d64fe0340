"""Models: encoders, a linear head and batch norm, built by `make_model`.

`ENCODERS` maps the names of `config.model.encoder` to Flax modules. No other
package imports Flax.
"""

import fnmatch
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from maml_jax import ops
from maml_jax.models.convnet import ConvNet4
from maml_jax.models.layers import Head, normalize
from maml_jax.models.mlp import MLP
from maml_jax.models.norm import MODES, BatchNorm
from maml_jax.models.resnet import BASE_WIDTHS, WIDE_WIDTHS, ResNet12, ResNet18
from maml_jax.types import Array, Model
from maml_jax.utils.errors import UserError, check_choice

__all__ = ['CONVNET_WIDTHS', 'ENCODERS', 'Network', 'Norm', 'make_model']

# Channels of each block.
CONVNET_WIDTHS = {'convnet4': 32, 'wide_convnet4': 64}
ENCODERS: dict[str, Callable[..., nn.Module]] = {
  **{
    name: partial(ConvNet4, width=width)
    for name, width in CONVNET_WIDTHS.items()
  },
  'resnet12': partial(ResNet12, widths=BASE_WIDTHS),
  'wide_resnet12': partial(ResNet12, widths=WIDE_WIDTHS),
  'resnet10': partial(ResNet18, widths=BASE_WIDTHS, blocks=1),
  'wide_resnet10': partial(ResNet18, widths=WIDE_WIDTHS, blocks=1),
  'resnet18': partial(ResNet18, widths=BASE_WIDTHS, blocks=2),
  'wide_resnet18': partial(ResNet18, widths=WIDE_WIDTHS, blocks=2),
  'mlp': partial(MLP, width=40),
}

# A mode for all layers, or (pattern of layer names, mode) pairs.
Norm = str | tuple[tuple[str, str], ...]


class Network(nn.Module):
  """An encoder with a linear head.

  Attributes:
    encoder: a module from images to features [N, D].
    classifier: a module from features to logits [N, W].
    context_size: C, numbers of the parameter `context`, which starts at 0 and
      conditions the encoder; 0 for none.
    normalize_features: whether features have norm 1.
  """

  encoder: nn.Module
  classifier: nn.Module
  context_size: int = 0
  normalize_features: bool = False

  def __call__(self, inputs, *, train):
    return self.classifier(self.features(inputs, train=train))

  @nn.compact
  def features(self, inputs: Array, *, train: bool) -> Array:
    merges = isinstance(self.encoder, ConvNet4) and not self.context_size
    if ops.num_merged_tasks() > 1 and not merges:
      raise UserError('merge_tasks=True needs a ConvNet4 without a context')
    context = {}
    if self.context_size:
      zeros = nn.initializers.zeros
      shape = (self.context_size,)
      context = {'context': self.param('context', zeros, shape, jnp.float32)}
    features = self.encoder(inputs, train=train, **context)
    return normalize(features) if self.normalize_features else features


def make_model(
  encoder: str,
  num_ways: int,
  image_shape: tuple[int, ...],
  *,
  norm: Norm = 'batch',
  meta_test: bool = False,
  norm_scale: bool = True,
  norm_eps: float = 1e-5,
  norm_momentum: float = 0.9,
  init: str = 'torch',
  temperature: float = 1.0,
  learn_temperature: bool = False,
  context_size: int = 0,
  normalize_features: bool = False,
  dtype: DTypeLike | None = None,
  **encoder_args,
) -> Model:
  """Builds a network as a pair of pure functions.

  Args:
    encoder: a key of `ENCODERS`.
    num_ways: W, the number of classes.
    image_shape: (H, W, C) of one image; for 'mlp', the shape of one input.
    norm: a batch norm mode for all layers (see `models.norm`), or (pattern,
      mode) pairs: a layer such as 'conv1' or 'layer2' has the mode of the first
      pattern that matches its name.
    meta_test: whether the network is for meta-test, in which layers of mode
      `global` use their running moments in the support pass, too.
    norm_scale: whether batch norm has a learned scale in addition to the bias.
    norm_eps: added to the variance in batch norm.
    norm_momentum: weight of the old running moments in an update.
    init: 'torch' (PyTorch's defaults) or 'xavier' (as in the official MAML
      code).
    temperature: factor on the logits.
    learn_temperature: whether the outer loop learns the temperature.
    context_size: numbers of the parameter `context`, which conditions a
      ConvNet4 or an MLP (CAVIA); 0 for none.
    normalize_features: whether the features of each image are divided by their
      norm, so that only their direction counts.
    dtype: dtype of images, activations and kernels inside the network, such as
      'bfloat16'; None: the dtype of the images. Parameters, `stats`, batch norm
      and logits are always float32.
    **encoder_args: arguments of the encoder, such as `width`.

  Returns:
    A `Model` with `features`. `params` has the keys 'encoder' and 'classifier';
    `stats` holds the moments that the norm modes store, and is {} for mode
    `batch`. Images are [N, H, W, C] float32, logits [N, W] float32.

  Raises:
    UserError: an unknown encoder, norm mode or init, or a context for an
      encoder that takes none; when `init` of the model
      is called, a layer that matches no pattern of `norm`.
  """
  check_choice('encoder', encoder, ENCODERS)
  check_choice('init', init, ('torch', 'xavier'))
  if context_size and 'resnet' in encoder:
    raise UserError(
      f'model.context_size={context_size}: {encoder} takes no context; use '
      'convnet4, wide_convnet4 or mlp'
    )
  norm_for_layer = _make_norm_selector(
    norm,
    meta_test=meta_test,
    epsilon=norm_eps,
    momentum=norm_momentum,
    use_scale=norm_scale,
  )
  network = Network(
    encoder=ENCODERS[encoder](norm=norm_for_layer, init=init, **encoder_args),
    classifier=Head(num_ways, init, temperature, learn_temperature),
    context_size=context_size,
    normalize_features=normalize_features,
  )

  def init_fn(key):
    inputs = jnp.zeros((1, *image_shape), jnp.float32)
    return _split_variables(network.init(key, inputs, train=True))

  def apply_fn(params, stats, inputs, *, train, method=None):
    variables = {'params': params, **stats}
    inputs = jnp.asarray(inputs, dtype)
    args = {'train': train, 'method': method}
    if not train:
      return network.apply(variables, inputs, **args), stats
    outputs, updates = network.apply(
      variables, inputs, **args, mutable=list(stats)
    )
    return outputs, {**stats, **updates}

  features_fn = partial(apply_fn, method='features')
  return Model(init_fn, apply_fn, features_fn)


def _make_norm_selector(norm: Norm, **norm_args) -> Callable:
  """Returns a function from a layer's name to its batch norm constructor."""
  pairs = (('*', norm),) if isinstance(norm, str) else tuple(norm)
  for _, mode in pairs:
    check_choice('norm mode', mode, MODES)

  def norm_for_layer(layer):
    for pattern, mode in pairs:
      if fnmatch.fnmatchcase(layer, pattern):
        return partial(BatchNorm, mode=mode, **norm_args)
    raise UserError(
      f'model.norm: no pattern matches layer {layer!r}; '
      "end the list with ('*', MODE)"
    )

  return norm_for_layer


def _split_variables(variables):
  """Splits the variables of a Flax module into params and stats."""
  stats = dict(variables)
  return stats.pop('params'), stats
