"""The inner loop against closed forms on quadratic tasks, in float64.

Loss of a task with centre c: (w - c)' A (w - c) / 2, so every step is an affine
map of (w, momentum buffer) and K of them are a matrix power.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.inner_loop import InnerConfig, adapt, param_labels, path_matches
from maml_jax.learner import (
  Batch,
  Episode,
  cross_entropy,
  make_learner,
  meta_gradient,
)
from maml_jax.types import Model
from maml_jax.utils.errors import UserError

DIM, STEPS, TASKS = 3, 4, 6
CURVATURE = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, 0.2], [0.0, 0.2, 0.5]])
SETTINGS = [
  {},
  {'momentum': 0.9},
  {'weight_decay': 0.1},
  {'momentum': 0.5, 'weight_decay': 0.05},
]


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def quadratic(outputs, centre):
  difference = outputs - centre
  return difference @ CURVATURE @ difference / 2


def make(**config):
  model = Model(
    lambda key: ({'encoder': jnp.zeros(DIM)}, {}),
    lambda params, stats, image, *, train: (params['encoder'], stats),
  )
  config = InnerConfig(num_steps=STEPS, encoder_lr=0.1, **config)
  return make_learner(model, config, loss_fn=quadratic, metric_fns={})


def tasks():
  centre = np.random.RandomState(0).randn(2, TASKS, DIM)
  nothing = jnp.zeros((TASKS, 0))
  support, query = (Batch(nothing, jnp.array(c)) for c in centre)
  return Episode(support, query)


def after_steps(config, w, centre, steps=STEPS):
  """w after K steps and its derivative by the first w, by matrix powers."""
  eye, zero = np.eye(DIM), np.zeros((DIM, DIM))
  mu, decay = config.get('momentum', 0.0), config.get('weight_decay', 0.0)

  def power(curvature):
    pull = curvature + decay * eye
    buffer = np.block([pull, mu * eye])
    move = np.block([eye, zero]) - 0.1 * buffer
    return np.block([[move], [buffer]])

  state = np.concatenate([w, np.zeros(DIM)])
  shift = CURVATURE @ centre
  for _ in range(steps):
    state = power(CURVATURE) @ state - np.concatenate([-0.1 * shift, shift])
  known = 0 * CURVATURE if config.get('first_order') else CURVATURE
  jacobian = np.linalg.matrix_power(power(known), steps)
  return state[:DIM], jacobian[:DIM, :DIM]


@pytest.mark.parametrize('mixed_mode', [False, True])
@pytest.mark.parametrize('remat', [True, False])
@pytest.mark.parametrize('first_order', [True, False])
@pytest.mark.parametrize('config', SETTINGS, ids=str)
def test_meta_gradient_is_the_closed_form(
  config, first_order, remat, mixed_mode
):
  config = config | {'first_order': first_order}
  learner = make(**config, remat=remat, mixed_mode=mixed_mode)
  episodes = tasks()
  w = np.array([0.4, -1.0, 0.7])
  grads, _, metrics = jax.jit(
    lambda w, episodes: meta_gradient(learner, {'encoder': w}, {}, episodes)
  )(w, episodes)
  expected, losses = np.zeros(DIM), []
  for c_support, c_query in zip(
    episodes.support.targets, episodes.query.targets, strict=True
  ):
    adapted, jacobian = after_steps(config, w, np.asarray(c_support))
    slope = CURVATURE @ (adapted - np.asarray(c_query))
    expected += jacobian.T @ slope / TASKS
    losses.append(quadratic(adapted, np.asarray(c_query)))
  np.testing.assert_allclose(grads['encoder'], expected, atol=1e-12)
  np.testing.assert_allclose(metrics['loss'], losses, atol=1e-12)


@pytest.mark.parametrize('setting', SETTINGS)
def test_trace_looks_at_the_closed_form_after_each_step(setting):
  learner, episode = make(**setting), jax.tree.map(lambda x: x[0], tasks())
  w = jnp.array([0.5, -1.0, 2.0])

  def observe(params, stats):
    return {'w': params['encoder'], 'stats': stats}

  for at in (None, (0, 2, STEPS), (3,), (0,)):
    seen = jax.jit(learner.trace, static_argnums=(3, 4))(
      {'encoder': w}, {}, episode.support, observe, at
    )
    expected = [
      after_steps(setting, w, episode.support.targets, k)[0]
      for k in (at or range(STEPS + 1))
    ]
    np.testing.assert_allclose(seen['w'], np.stack(expected), rtol=1e-12)


def test_zero_steps_change_nothing():
  learner = make_learner(
    Model(None, lambda p, s, image, *, train: (p['encoder'], s)),
    InnerConfig(num_steps=0),
    loss_fn=quadratic,
    metric_fns={},
  )
  support = jax.tree.map(lambda x: x[0], tasks().support)
  w = {'encoder': jnp.arange(3.0)}
  adapted, _, losses = learner.adapt(w, {}, support)
  np.testing.assert_array_equal(adapted['encoder'], w['encoder'])
  assert losses.shape == (0,)


def two_groups():
  return {
    'encoder': {
      'conv1': {'kernel': jnp.ones(2), 'bn': {'bias': jnp.ones(1)}},
    },
    'classifier': {'kernel': jnp.ones(2), 'temperature': jnp.ones(())},
  }


def sum_of_squares(params, stats, support):
  del support
  return sum((x**2).sum() for x in jax.tree.leaves(params)) / 2, stats


def test_groups_have_their_own_rates_and_frozen_parameters_stay():
  config = InnerConfig(
    num_steps=1, encoder_lr=0.1, classifier_lr=0.5, frozen=('bn',)
  )
  adapted, *_ = adapt(sum_of_squares, config, two_groups(), {}, None)
  np.testing.assert_allclose(adapted['encoder']['conv1']['kernel'], 0.9)
  np.testing.assert_allclose(adapted['classifier']['kernel'], 0.5)
  np.testing.assert_array_equal(adapted['encoder']['conv1']['bn']['bias'], 1)
  np.testing.assert_array_equal(adapted['classifier']['temperature'], 1)


def test_a_learning_rate_of_zero_is_zero():
  config = InnerConfig(num_steps=3, encoder_lr=0.0, classifier_lr=0.0)
  params = two_groups()
  adapted, *_ = adapt(sum_of_squares, config, params, {}, None)
  jax.tree.map(np.testing.assert_array_equal, adapted, params)


def test_a_reset_head_starts_at_zero_and_passes_its_gradient_on():
  config = InnerConfig(num_steps=1, classifier_lr=0.5, reset_classifier=True)

  def loss(params, stats, support):
    return (params['classifier']['kernel'] ** 2 - support).sum(), stats

  def outer(params):
    adapted, *_ = adapt(loss, config, params, {}, jnp.ones(2))
    return adapted['classifier']['kernel'].sum()

  value, grads = jax.value_and_grad(outer)(two_groups())
  assert value == 0  # 0 - 0.5 * 2 * 0
  # d/dw (w - 0.5 * 2 w) = 0 at the zero that stands for w
  np.testing.assert_array_equal(grads['classifier']['kernel'], 0)
  config = InnerConfig(num_steps=0, reset_classifier=True)
  grads = jax.grad(outer)(two_groups())
  np.testing.assert_array_equal(grads['classifier']['kernel'], 1)


def test_only_adapted_parameters_have_inner_state():
  """Frozen weights take no inner-loop memory: they are no carry of the scan."""
  params = two_groups() | {'encoder': {'kernel': jnp.ones(1234)}}
  config = InnerConfig(momentum=0.9, frozen=('encoder',))
  jaxpr = jax.make_jaxpr(
    lambda p: adapt(sum_of_squares, config, p, {}, None)[0]
  )(params)
  scan = next(e for e in jaxpr.eqns if e.primitive.name == 'scan')
  # The carry and the losses; what is frozen goes in but does not come out.
  assert sum(v.aval.size for v in scan.outvars) < 20


def everything(mixed_mode, remat=False):
  """Outer gradients of a loss that all there is has a part in.

  Statistics carry derivatives from step to step, beside a count that has none;
  a parameter is frozen; the head starts at zero.
  """
  config = InnerConfig(
    num_steps=3,
    encoder_lr=0.3,
    classifier_lr=0.5,
    momentum=0.5,
    weight_decay=0.01,
    frozen=('shift',),
    reset_classifier=True,
    remat=remat,
    mixed_mode=mixed_mode,
  )

  def loss_fn(params, stats, support):
    encoder = params['encoder']
    shift = encoder['shift'] + stats['mean']
    hidden = jnp.tanh(support.inputs @ encoder['kernel'] + shift[None])
    loss = cross_entropy(
      hidden @ params['classifier']['kernel'], support.targets
    )
    mean = 0.5 * stats['mean'] + hidden.mean(0)
    return loss, {'mean': mean, 'count': stats['count'] + 1}

  def outer(params, mean, image):
    support = Batch(image, jnp.arange(len(image)) % 3)
    stats = {'mean': mean, 'count': jnp.int32(0)}
    adapted, stats, losses = adapt(loss_fn, config, params, stats, support)
    total = sum(jnp.sin(x).sum() for x in jax.tree.leaves(adapted))
    return total + (stats['mean'] ** 3).sum() + losses @ jnp.arange(1.0, 4)

  r = np.random.RandomState(0)
  encoder = {'kernel': r.randn(5, 4), 'shift': r.randn(4)}
  params = {'encoder': encoder, 'classifier': {'kernel': r.randn(4, 3)}}
  args = jax.tree.map(jnp.array, (params, r.randn(4), r.randn(2, 30, 5)))
  return jax.vmap(jax.grad(outer, (0, 1, 2)), (None, None, 0)), args


@pytest.mark.parametrize('remat', [True, False])
def test_mixed_mode_carries_every_derivative(remat):
  default, args = everything(False)
  expected = jax.jit(default)(*args)
  mixed, _ = everything(True, remat)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-12),
    jax.jit(mixed)(*args),
    expected,
  )
  assert all(np.abs(x).max() > 0.01 for x in jax.tree.leaves(expected))


def test_mixed_mode_stores_no_activations():
  def stored(mixed_mode):
    run, args = everything(mixed_mode)
    eqns = jax.make_jaxpr(run)(*args).eqns
    scan = next(e for e in eqns if e.primitive.name == 'scan')
    return max(v.aval.size for v in scan.outvars)

  activations = 3 * 2 * 30 * 4  # steps, tasks, images, features
  assert stored(False) >= activations > 2 * stored(True)


@pytest.mark.parametrize(
  'pattern, path, hit',
  [
    ('bn', 'encoder/conv1/bn/bias', True),
    ('bn', 'encoder/layer1/bn1/bias', False),
    ('bn*', 'encoder/layer1/bn1/bias', True),
    ('conv1', 'encoder/conv10/conv/bias', False),
    ('conv[12]/conv', 'encoder/conv2/conv/kernel', True),
    ('encoder', 'encoder/conv1/bn/bias', True),
    ('encoder/bn', 'encoder/conv1/bn/bias', False),
    ('encoder/conv1/bn/bias/more', 'encoder/conv1/bn/bias', False),
    ('*', 'classifier/kernel', True),
  ],
)
def test_patterns_match_consecutive_parts(pattern, path, hit):
  assert path_matches(pattern, path) is hit


def test_a_pattern_that_matches_nothing_is_an_error():
  with pytest.raises(UserError, match="'conv9' matches no parameter") as error:
    param_labels(InnerConfig(frozen=('bn', 'conv9')), two_groups())
  assert 'encoder/conv1/bn/bias' in str(error.value)
  assert '\n' not in str(error.value)
