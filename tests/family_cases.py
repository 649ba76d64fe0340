"""Golden cases of the MAML family as learners, parameters and episodes.

The README.md in tests/golden_family documents the format of the files.
"""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax import ops
from maml_jax.learner import (
  Batch,
  Episode,
  InnerConfig,
  Model,
  OuterConfig,
  cross_entropy,
  make_learner,
  squared_error,
)

FOLDER = Path(
  os.environ.get('MAML_JAX_GOLDEN_FAMILY')
  or Path(__file__).parent / 'golden_family'
)
CASES = sorted(FOLDER.glob('*.json'))
# These take longest to compile.
SLOW = (
  'alfa',
  'alfa_conv',
  'imaml',
  'maml_plus_plus_bn',
  'meta_curvature_conv',
)


def cases(fast=None):
  """Returns parameters of a test; all but the names in `fast` are slow."""

  def marks(name):
    is_slow = name in SLOW if fast is None else name not in fast
    return [pytest.mark.slow] if is_slow else []

  return [pytest.param(p, id=p.stem, marks=marks(p.stem)) for p in CASES]


LOSSES = {'cross_entropy': cross_entropy, 'squared_error': squared_error}


def nest(flat):
  """Returns nested dicts of arrays from {'a/b': list}."""
  tree = {}
  for path, value in flat.items():
    *parents, name = path.split('/')
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
    node[name] = jnp.array(value, jnp.float64)
  return tree


def get_leaf(tree, path):
  for key in path.split('/'):
    tree = tree[key]
  return tree


def make_network(layers):
  """Returns `apply(params, x)` of a list of layers."""

  def apply(params, x):
    for layer in layers:
      p = get_leaf(params, layer['params']) if 'params' in layer else None
      x = apply_layer(layer, p, x)
    return x

  return apply


def expand(x):
  """Returns x [C] as [1, 1, 1, C]."""
  return x[None, None, None]


def apply_layer(layer, p, x):
  op = layer['op']
  if op == 'linear':
    return x @ p['kernel'] + p['bias'][None]
  if op == 'conv':
    stride, padding = layer['stride'], layer['padding']
    out = ops.conv(x, p['kernel'], stride=stride, padding=padding)
    return out + expand(p['bias'])
  if op == 'batch_norm':
    x = x - x.mean((0, 1, 2), keepdims=True)
    var = jnp.square(x).mean((0, 1, 2), keepdims=True)
    x = x / jnp.sqrt(var + layer['eps'])
    return x * expand(p['scale']) + expand(p['bias'])
  if op == 'max_pool':
    assert layer['size'] == 2
    return ops.max_pool(x)
  if op == 'flatten':
    return x.reshape(len(x), -1)
  if op == 'concat':
    return jnp.concatenate([x, jnp.tile(p[None], (len(x), 1))], 1)
  if op == 'leaky_relu':
    return jax.nn.leaky_relu(x, layer['slope'])
  return {'tanh': jnp.tanh, 'relu': jax.nn.relu}[op](x)


class Case:
  """One golden file as a learner, its parameters and its episodes."""

  def __init__(self, file):
    self.json = json.loads(file.read_text())
    self.expect = self.json['expect']
    inner, outer = (dict(self.json['config'][k]) for k in ('inner', 'outer'))
    self.loss = outer.pop('loss')
    assert inner.pop('loss') == self.loss
    inner.pop('tensor_order', None)
    for name in ('frozen', 'zero', 'per_step'):
      inner[name] = tuple(inner[name])
    for name in ('encoder_lr', 'classifier_lr'):
      if inner[name] is None:  # learned
        inner[name] = 0.0
    optimizer = inner.pop('optimizer')
    inner |= {'optimizer': optimizer.pop('name')} | optimizer
    self.epoch = outer.pop('epoch', 0)
    self.weights = outer.pop('step_weights')
    outer.setdefault('cg_steps', 400)
    self.inner, self.outer = inner, OuterConfig(**outer)
    self.episodes = self.read_episodes()
    layers = self.json['network']['layers']
    self.network = make_network(layers)
    self.encoder = make_network(
      [layer for layer in layers if layer.get('params') != 'classifier']
    )
    self.params = self.read_params()

  def read_episodes(self):
    y_dtype = jnp.int32 if self.loss == 'cross_entropy' else jnp.float64

    def read(name):
      batches = [episode[name] for episode in self.json['episodes']]
      x = jnp.array([batch['x'] for batch in batches], jnp.float64)
      return Batch(x, jnp.array([batch['y'] for batch in batches], y_dtype))

    return Episode(read('support'), read('query'))

  def read_params(self):
    params = nest(self.json['params'])
    if self.json['inner']:
      params['inner'] = nest(self.json['inner'])
    if 'classifier' not in params and self.inner['head'] != 'learned':
      features = self.encoder(params, self.episodes.support.inputs[0])
      ways = np.shape(self.expect['logits'])[-1]
      params['classifier'] = {
        'kernel': jnp.ones((features.shape[-1], ways)),
        'bias': jnp.ones(ways),
      }
    return params

  def learner(self, outer=None, **inner):
    """Returns the learner, with some settings changed."""
    model = Model(
      None,
      lambda params, stats, x, *, train: (self.network(params, x), stats),
      lambda params, stats, x, *, train: (self.encoder(params, x), stats),
    )
    return make_learner(
      model,
      InnerConfig(**self.inner | inner),
      outer or self.outer,
      loss_fn=LOSSES[self.loss],
      metric_fns={},
    )
