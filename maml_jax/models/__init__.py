"""Encoders, heads and batch norm; the only package that imports flax.

`make_model` is the way in. `ENCODERS` maps every name a config may use to the
module that builds it.
"""

import fnmatch
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from maml_jax.models.convnet import ConvNet4
from maml_jax.models.layers import Head
from maml_jax.models.mlp import MLP
from maml_jax.models.norm import MODES, BatchNorm
from maml_jax.models.resnet import NARROW, WIDE, ResNet12, ResNet18
from maml_jax.types import Model
from maml_jax.utils.errors import UserError, check_choice

ENCODERS: dict[str, Callable[..., nn.Module]] = {
  'convnet4': partial(ConvNet4, width=32),
  'wide_convnet4': partial(ConvNet4, width=64),
  'resnet12': partial(ResNet12, widths=NARROW),
  'wide_resnet12': partial(ResNet12, widths=WIDE),
  'resnet10': partial(ResNet18, widths=NARROW, blocks=1),
  'wide_resnet10': partial(ResNet18, widths=WIDE, blocks=1),
  'resnet18': partial(ResNet18, widths=NARROW, blocks=2),
  'wide_resnet18': partial(ResNet18, widths=WIDE, blocks=2),
  'mlp': partial(MLP, width=40),
}

Norm = str | tuple[tuple[str, str], ...]


class Network(nn.Module):
  """An encoder and a linear head, or none."""

  encoder: nn.Module
  classifier: nn.Module | None

  def __call__(self, image, *, train):
    features = self.encoder(image, train=train)
    return features if self.classifier is None else self.classifier(features)


def make_model(
  encoder: str,
  num_ways: int | None,
  image_shape: tuple[int, int, int],
  *,
  norm: Norm = 'batch',
  meta_test: bool = False,
  norm_scale: bool = True,
  norm_eps: float = 1e-5,
  norm_momentum: float = 0.9,
  init: str = 'torch',
  temperature: float = 1.0,
  learn_temperature: bool = False,
  dtype: DTypeLike | None = None,
  **encoder_args,
) -> Model:
  """Builds a network as a pair of pure functions.

  Args:
    encoder: a key of `ENCODERS`.
    num_ways: outputs of the head, W; None: no head, features [N, D] in the
      place of logits, and of params the 'encoder' alone.
    image_shape: (H, W, C) of one image.
    norm: a mode of batch norm for all layers (see `models.norm`), or pairs
      (pattern, mode): a layer such as 'conv1' or 'layer2' takes the mode of the
      first pattern that matches its name.
    meta_test: build the network of meta-test: layers of mode `global` use
      their running moments in the inner loop too.
    norm_scale: learn a scale in batch norm beside the bias.
    norm_eps: added to the variance in batch norm.
    norm_momentum: what running moments keep of themselves at an update.
    init: 'torch' (PyTorch's defaults) or 'xavier' (the official MAML's).
    temperature: factor on the logits.
    learn_temperature: learn that factor, in the outer loop only.
    dtype: of images, activations and the factors of products inside the
      network, such as 'bfloat16'; None: that of the images. Parameters,
      `stats`, batch norm and logits are float32 whatever it is.
    **encoder_args: passed to the encoder, such as `width`.

  Returns:
    A `Model`. `params` has the keys 'encoder' and 'classifier'; `stats` holds
    the moments that the norm modes keep, {} for mode `batch`. Images are
    [N, H, W, C] float32, logits [N, num_ways] float32.

  Raises:
    UserError: an unknown encoder, norm mode or init.
  """
  check_choice('encoder', encoder, ENCODERS)
  check_choice('init', init, ('torch', 'xavier'))
  make_norm = _norm_maker(
    norm,
    meta_test=meta_test,
    epsilon=norm_eps,
    momentum=norm_momentum,
    use_scale=norm_scale,
  )
  network = Network(
    encoder=ENCODERS[encoder](norm=make_norm, init=init, **encoder_args),
    classifier=num_ways
    and Head(num_ways, init, temperature, learn_temperature),
  )

  def init_fn(key):
    image = jnp.zeros((1, *image_shape), jnp.float32)
    return _split(network.init(key, image, train=True))

  def apply_fn(params, stats, image, *, train):
    variables = {'params': params, **stats}
    image = jnp.asarray(image, dtype)
    if not train:
      return network.apply(variables, image, train=False), stats
    logits, updates = network.apply(
      variables, image, train=True, mutable=list(stats)
    )
    return logits, {**stats, **updates}

  return Model(init_fn, apply_fn)


def _norm_maker(norm: Norm, **norm_args) -> Callable:
  """`make_norm(layer)` gives the constructor of a layer's batch norm."""
  pairs = (('*', norm),) if isinstance(norm, str) else tuple(norm)
  for _, mode in pairs:
    check_choice('norm mode', mode, MODES)

  def make_norm(layer):
    for pattern, mode in pairs:
      if fnmatch.fnmatchcase(layer, pattern):
        return partial(BatchNorm, mode=mode, **norm_args)
    raise UserError(
      f'model.norm says nothing about layer {layer!r}: end the list with '
      "('*', MODE)"
    )

  return make_norm


def _split(variables):
  stats = dict(variables)
  return stats.pop('params'), stats
