"""Sizes, initialization and options of all encoders."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

from maml_jax.learner import cross_entropy
from maml_jax.models import ENCODERS, make_model
from maml_jax.models.norm import MODES, BatchNorm
from maml_jax.utils.errors import UserError


def convs(*layers, bias=False):
  """Returns the number of parameters of convolutions with batch norm.

  Args:
    *layers: (kernel size, input channels, output channels) of each.
    bias: whether the convolutions have a bias.
  """
  return sum(k * k * c * o + (3 if bias else 2) * o for k, c, o in layers)


def resnet12(*widths):
  """Returns the number of parameters of the encoder."""
  layers, c = [], 3
  for w in widths:
    layers += [(3, c, w), (3, w, w), (3, w, w), (1, c, w)]
    c = w
  return convs(*layers)


def resnet(blocks, *widths):
  """Returns the number of parameters of the encoder, without its head."""
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


def test_table_of_sizes_lists_every_encoder():
  assert set(SIZES) == set(ENCODERS)


@pytest.mark.parametrize('encoder', SIZES)
def test_number_of_parameters_and_features(encoder):
  count, features = SIZES[encoder]
  model = make_model(encoder, 5, (84, 84, 3))
  params, stats = jax.eval_shape(model.init, jax.random.key(0))
  assert sum(x.size for x in jax.tree.leaves(params['encoder'])) == count
  assert params['classifier']['kernel'].shape == (features, 5)
  assert params['classifier']['bias'].shape == (5,) and not stats


@pytest.mark.parametrize('encoder', ENCODERS)
@pytest.mark.parametrize('shape', [(28, 28, 1), (33, 50, 3)])
def test_encoders_accept_any_image_size(encoder, shape):
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


@pytest.mark.slow
def test_initial_weights_have_the_documented_spread():

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


def test_batch_norm_without_scale_has_only_a_bias():
  model = make_model('convnet4', 5, (28, 28, 1), norm_scale=False)
  params, _ = jax.eval_shape(model.init, jax.random.key(0))
  assert set(params['encoder']['conv1']['bn']) == {'bias'}


def test_norm_patterns_set_the_mode_of_each_layer():
  norm = (('conv[34]', 'episodic'), ('*', 'global'))
  model = make_model('convnet4', 5, (28, 28, 1), norm=norm)
  _, stats = jax.eval_shape(model.init, jax.random.key(0))
  assert set(stats['episode']['encoder']) == {'conv3', 'conv4'}
  assert set(stats['global']['encoder']) == {'conv1', 'conv2'}


def test_temperature_multiplies_the_logits():
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
  """Yields all equations of a jaxpr, including nested ones."""
  for eqn in jaxpr.eqns:
    yield eqn
    for inner in jaxprs_in_params(eqn.params):
      yield from equations(inner)


def make_gradient(**kw):
  """Returns a small model and the gradient of its support loss."""
  model = make_model('convnet4', 3, (16, 16, 3), width=8, **kw)

  def loss(params, stats, images, targets):
    logits, stats = model.apply(params, stats, images, train=True)
    return cross_entropy(logits, targets), (logits, stats)

  return model, jax.value_and_grad(loss, has_aux=True)


@pytest.mark.parametrize('mode', MODES)
def test_bfloat16_applies_only_to_convolutions_and_activations(mode):
  images = jax.ShapeDtypeStruct((6, 16, 16, 3), jnp.float32)
  targets = jax.ShapeDtypeStruct((6,), jnp.int32)
  float32 = {jnp.dtype('float32')}
  for dtype in ('bfloat16', None):
    model, gradient = make_gradient(norm=mode, dtype=dtype)
    state = jax.eval_shape(model.init, jax.random.key(0))
    args = *state, images, targets
    jaxpr, out = jax.make_jaxpr(gradient, return_shape=True)(*args)
    assert {x.dtype for x in jax.tree.leaves((state, out))} == float32
    operands, sums = set(), set()
    for eqn in equations(jaxpr.jaxpr):
      if eqn.primitive.name in ('conv', 'conv_kernel_grad'):
        operands |= {v.aval.dtype for v in eqn.invars}
      if eqn.primitive.name == 'reduce_sum':
        sums |= {v.aval.dtype for v in eqn.invars}
    assert operands == {jnp.dtype(dtype or 'float32')}
    assert sums == float32
    assert ('bf16' in str(jaxpr)) == (dtype is not None)


@pytest.mark.slow
def test_bfloat16_gradient_error_is_within_rounding_error():
  """Rounding changes ReLU and max pooling, so the error is some percent.

  The tolerance is derived from the change of the float32 gradient when only
  images and parameters are rounded. The bfloat16 network rounds 4 times as many
  arrays: per block the outputs of convolution and batch norm, and the
  cotangents of both.
  """
  model, float32_gradient = make_gradient()
  _, bfloat16_gradient = make_gradient(dtype='bfloat16')
  float32_jitted, bfloat16_jitted = map(
    jax.jit, (float32_gradient, bfloat16_gradient)
  )
  targets = jnp.arange(12) % 3
  rounding_changes, errors = [], []

  def round_to_bfloat16(tree):
    return jax.tree.map(lambda x: jax.lax.reduce_precision(x, 8, 7), tree)

  def distance(x, y):
    return optax.tree.norm(optax.tree.sub(x, y)) / optax.tree.norm(y)

  for seed in range(4):
    r = np.random.RandomState(seed)
    params, _ = model.init(jax.random.key(seed))
    pattern = r.rand(3, 4, 4, 3).repeat(4, 1).repeat(4, 2)[targets]
    images = jnp.array(pattern + 0.3 * r.rand(12, 16, 16, 3), jnp.float32)
    (loss, _), grads = float32_jitted(params, {}, images, targets)
    (bfloat16_loss, _), bfloat16_grads = bfloat16_jitted(
      params, {}, images, targets
    )
    np.testing.assert_allclose(bfloat16_loss, loss, rtol=2**-7)
    _, rounded_grads = float32_jitted(
      round_to_bfloat16(params), {}, round_to_bfloat16(images), targets
    )
    errors.append(distance(bfloat16_grads, grads))
    rounding_changes.append(distance(rounded_grads, grads))
    if seed == 0:
      with jax.disable_jit():
        _, op_by_op = bfloat16_gradient(params, {}, images, targets)
      assert distance(bfloat16_grads, op_by_op) < 4 * rounding_changes[0]
  assert 0 < np.linalg.norm(errors) < 4 * np.linalg.norm(rounding_changes) < 1


@pytest.mark.parametrize(
  'args, message',
  [
    ({'encoder': 'convnet5'}, 'did you mean convnet4'),
    ({'norm': 'episodc'}, 'did you mean episodic'),
    ({'init': 'xavir'}, 'did you mean xavier'),
    ({'norm': (('conv1', 'batch'),)}, "no pattern matches layer 'conv2'"),
  ],
)
def test_unknown_names_raise_user_errors(args, message):
  args = {'encoder': 'convnet4'} | args
  with pytest.raises(UserError, match=message):
    model = make_model(num_ways=5, image_shape=(28, 28, 1), **args)
    model.init(jax.random.key(0))


@pytest.mark.parametrize('meta_test', [False, True])
def test_tasknorm_global_blends_running_moments_with_those_of_the_image(
  meta_test,
):
  """Compares two support passes and a query pass with NumPy, in float64."""
  with jax.enable_x64(True):
    r = np.random.RandomState(0)
    support, query = r.randn(6, 4, 5, 3), r.randn(2, 4, 5, 3)
    mean, var = r.randn(3), 1 + r.rand(3)
    layer = BatchNorm(mode='tasknorm_global', meta_test=meta_test)
    params = {
      'scale': jnp.array(r.rand(3)),
      'bias': jnp.array(r.randn(3)),
      'alpha_scale': jnp.array(0.2),
      'alpha_offset': jnp.array(-0.5),
    }
    stats = {
      'global': {'mean': jnp.array(mean), 'var': jnp.array(var)},
      'episode': {'size': jnp.array(0.0)},
    }

    def normalize(x, mean, var):
      x = (x - mean) / np.sqrt(var + 1e-5)
      return x * np.asarray(params['scale']) + np.asarray(params['bias'])

    for _ in range(2):
      got, stats = layer.apply(
        {'params': params, **stats}, support, train=True, mutable=list(stats)
      )
      batch = support.mean((0, 1, 2)), support.var((0, 1, 2))
      expected = normalize(support, *((mean, var) if meta_test else batch))
      np.testing.assert_allclose(got, expected, rtol=1e-12)
      if not meta_test:
        n = 6 * 4 * 5
        mean = 0.9 * mean + 0.1 * batch[0]
        var = 0.9 * var + 0.1 * batch[1] * n / (n - 1)
    np.testing.assert_allclose(stats['global']['mean'], mean, rtol=1e-12)
    np.testing.assert_allclose(stats['global']['var'], var, rtol=1e-12)
    a = 1 / (1 + np.exp(-(0.2 * 6 - 0.5)))
    own = query.mean((1, 2), keepdims=True), query.var((1, 2), keepdims=True)
    blended = a * var + (1 - a) * own[1] + a * (1 - a) * (own[0] - mean) ** 2
    expected = normalize(query, a * mean + (1 - a) * own[0], blended)
    got = layer.apply({'params': params, **stats}, query, train=False)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
