"""Sizes, initialisation and options of every registered encoder."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from maml_jax.learner import cross_entropy
from maml_jax.models import ENCODERS, make_model
from maml_jax.models.norm import MODES
from maml_jax.utils.errors import UserError


def convs(*pairs, bias=False):
  """Weights of convolutions (kernel size, in, out), each with batch norm."""
  return sum(k * k * c * o + (3 if bias else 2) * o for k, c, o in pairs)


def resnet12(*widths):
  layers, c = [], 3
  for w in widths:
    layers += [(3, c, w), (3, w, w), (3, w, w), (1, c, w)]
    c = w
  return convs(*layers)


def resnet(blocks, *widths):
  layers, c = [(3, 3, 64)], 64
  for i, w in enumerate(widths):
    layers += [(3, c, w), (3, w, w)] * 1 + [(3, w, w)] * 2 * (blocks - 1)
    layers += [(1, c, w)] if i else []
    c = w
  return convs(*layers)


# encoder -> (parameters of the encoder, features at 84 pixels)
SIZES = {
  'convnet4': (convs((3, 3, 32), *[(3, 32, 32)] * 3, bias=True), 800),
  'wide_convnet4': (convs((3, 3, 64), *[(3, 64, 64)] * 3, bias=True), 1600),
  'resnet12': (resnet12(64, 128, 256, 512), 512),
  'wide_resnet12': (resnet12(64, 160, 320, 640), 640),
  'resnet10': (resnet(1, 64, 128, 256, 512), 512),
  'wide_resnet10': (resnet(1, 64, 160, 320, 640), 640),
  'resnet18': (resnet(2, 64, 128, 256, 512), 512),
  'wide_resnet18': (resnet(2, 64, 160, 320, 640), 640),
  'mlp': (84 * 84 * 3 * 40 + 40 + 40 * 40 + 40, 40),
}


def test_every_encoder_is_in_the_table():
  assert set(SIZES) == set(ENCODERS)


@pytest.mark.parametrize('encoder', SIZES)
def test_sizes(encoder):
  count, features = SIZES[encoder]
  model = make_model(encoder, 5, (84, 84, 3))
  params, stats = jax.eval_shape(model.init, jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(params['encoder'])) == count
  assert params['classifier']['kernel'].shape == (features, 5)
  assert params['classifier']['bias'].shape == (5,) and not stats


@pytest.mark.parametrize('encoder', ENCODERS)
@pytest.mark.parametrize('shape', [(28, 28, 1), (33, 50, 3)])
def test_any_image_size(encoder, shape):
  model = make_model(encoder, 7, shape, norm='global')
  params, stats = jax.eval_shape(model.init, jax.random.key(0))
  logits, after = jax.eval_shape(
    lambda *args: model.apply(*args, train=True),
    params,
    stats,
    jax.ShapeDtypeStruct((2, *shape), jnp.float32),
  )
  assert logits.shape == (2, 7)
  assert jax.tree.structure(stats) == jax.tree.structure(after)


def test_initialisations():
  """Spread of the weights against the formulas, up to sampling noise."""

  def kernel(encoder, *path, **kw):
    params, _ = make_model(encoder, 5, (84, 84, 3), **kw).init(
      jax.random.key(0)
    )
    node = params['encoder']
    for key in path:
      node = node[key]
    return np.asarray(node)

  path = 'conv2', 'conv', 'kernel'
  torch = kernel('convnet4', *path)
  bound = 1 / np.sqrt(9 * 32)
  assert np.abs(torch).max() <= bound
  np.testing.assert_allclose(torch.std(), bound / np.sqrt(3), rtol=0.03)
  assert kernel('convnet4', 'conv2', 'conv', 'bias').std() > 0
  xavier = kernel('convnet4', *path, init='xavier')
  bound = np.sqrt(6 / (9 * 32 + 9 * 32))
  np.testing.assert_allclose(np.abs(xavier).max(), bound, rtol=0.01)
  bias = kernel('convnet4', 'conv2', 'conv', 'bias', init='xavier')
  np.testing.assert_array_equal(bias, 0)
  he = kernel('resnet10', 'layer2', 'conv1', 'kernel')  # 64 -> 128 channels
  np.testing.assert_allclose(he.std(), np.sqrt(2 / (9 * 128)), rtol=0.03)


def test_the_official_batch_norm_has_a_bias_but_no_scale():
  model = make_model('convnet4', 5, (28, 28, 1), norm_scale=False)
  params, _ = jax.eval_shape(model.init, jax.random.key(0))
  assert set(params['encoder']['conv1']['bn']) == {'bias'}


def test_layers_may_differ_in_norm():
  norm = (('conv[34]', 'episodic'), ('*', 'global'))
  model = make_model('convnet4', 5, (28, 28, 1), norm=norm)
  _, stats = jax.eval_shape(model.init, jax.random.key(0))
  assert set(stats['episode']['encoder']) == {'conv3', 'conv4'}
  assert set(stats['global']['encoder']) == {'conv1', 'conv2'}


def test_a_temperature_multiplies_the_logits():
  image = jnp.ones((2, 28, 28, 1)) * jnp.arange(2).reshape(2, 1, 1, 1)

  def logits(**kw):
    model = make_model('convnet4', 5, (28, 28, 1), norm='global', **kw)
    params, stats = model.init(jax.random.key(0))
    return model.apply(params, stats, image, train=False)[0], params

  plain, _ = logits()
  fixed, params = logits(temperature=3.0)
  learned, with_one = logits(temperature=3.0, learn_temperature=True)
  np.testing.assert_allclose(fixed, 3 * plain, rtol=1e-6)
  np.testing.assert_allclose(learned, 3 * plain, rtol=1e-6)
  assert 'temperature' not in params['classifier']
  assert with_one['classifier']['temperature'] == 3


def equations(jaxpr):
  """All of a program, those inside of others too."""
  for eqn in jaxpr.eqns:
    yield eqn
    for inner in jaxprs_in_params(eqn.params):
      yield from equations(inner)


def make_gradient(**kw):
  model = make_model('convnet4', 3, (16, 16, 3), width=8, **kw)

  def loss(params, stats, image, label):
    logits, stats = model.apply(params, stats, image, train=True)
    return cross_entropy(logits, label), (logits, stats)

  return model, jax.value_and_grad(loss, has_aux=True)


@pytest.mark.parametrize('mode', MODES)
def test_bfloat16_is_for_factors_and_activations_alone(mode):
  image = jax.ShapeDtypeStruct((6, 16, 16, 3), jnp.float32)
  label = jax.ShapeDtypeStruct((6,), jnp.int32)
  wide = {jnp.dtype('float32')}
  for dtype in ('bfloat16', None):
    model, gradient = make_gradient(norm=mode, dtype=dtype)
    state = jax.eval_shape(model.init, jax.random.key(0))
    args = *state, image, label
    jaxpr, out = jax.make_jaxpr(gradient, return_shape=True)(*args)
    assert {x.dtype for x in jax.tree.leaves((state, out))} == wide
    factors, sums = set(), set()
    for eqn in equations(jaxpr.jaxpr):
      if eqn.primitive.name in ('conv', 'conv_kernel_grad'):
        factors |= {v.aval.dtype for v in eqn.invars}
      if eqn.primitive.name == 'reduce_sum':
        sums |= {v.aval.dtype for v in eqn.invars}
    assert factors == {jnp.dtype(dtype or 'float32')}
    assert sums == wide
    assert ('bf16' in str(jaxpr)) == (dtype is not None)


def test_bfloat16_gradients_err_no_more_than_rounding_accounts_for():
  """Rounding moves ReLUs and maxima across their edges, so by the percent.

  The yardstick is what the float32 gradient does when images and parameters
  alone are rounded. In the network four times as many arrays are: per block the
  output of the convolution, that of the norm, and the cotangents of both.
  """
  model, plain = make_gradient()
  _, gradient = make_gradient(dtype='bfloat16')
  plain, narrow = map(jax.jit, (plain, gradient))
  label, moved, errors = jnp.arange(12) % 3, [], []

  def rounded(tree):
    return jax.tree.map(lambda x: jax.lax.reduce_precision(x, 8, 7), tree)

  def distance(x, y):
    return optax.tree.norm(optax.tree.sub(x, y)) / optax.tree.norm(y)

  for seed in range(4):
    r, (params, _) = (
      np.random.RandomState(seed),
      model.init(jax.random.key(seed)),
    )
    pattern = r.rand(3, 4, 4, 3).repeat(4, 1).repeat(4, 2)[label]
    image = jnp.array(pattern + 0.3 * r.rand(12, 16, 16, 3), jnp.float32)
    (loss, _), grads = plain(params, {}, image, label)
    (narrow_loss, _), narrow_grads = narrow(params, {}, image, label)
    np.testing.assert_allclose(narrow_loss, loss, rtol=2**-7)
    _, nearby = plain(rounded(params), {}, rounded(image), label)
    errors.append(distance(narrow_grads, grads))
    moved.append(distance(nearby, grads))
    if seed == 0:
      with jax.disable_jit():
        _, op_by_op = gradient(params, {}, image, label)
      assert distance(narrow_grads, op_by_op) < 4 * moved[0]
  assert 0 < np.linalg.norm(errors) < 4 * np.linalg.norm(moved) < 1


@pytest.mark.parametrize(
  'args, message',
  [
    ({'encoder': 'convnet5'}, 'did you mean convnet4'),
    ({'norm': 'episodc'}, 'did you mean episodic'),
    ({'init': 'xavir'}, 'did you mean xavier'),
    ({'norm': (('conv1', 'batch'),)}, "says nothing about layer 'conv2'"),
  ],
)
def test_wrong_names_are_one_clear_line(args, message):
  args = {'encoder': 'convnet4'} | args
  with pytest.raises(UserError, match=message):
    model = make_model(num_ways=5, image_shape=(28, 28, 1), **args)
    model.init(jax.random.key(0))
