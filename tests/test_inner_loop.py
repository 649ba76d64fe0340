"""The inner loop against closed forms on quadratic tasks, in float64.

The loss of a task with center c is (w - c)' A (w - c) / 2. Each step is an
affine map of (w, momentum buffer), so K steps are a matrix power.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.experiment.optimizers import make_optimizer
from maml_jax.inner_loop import (
  adapt,
  param_labels,
  path_matches,
  reset_params,
)
from maml_jax.learner import (
  Batch,
  Episode,
  InnerConfig,
  OuterConfig,
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


def quadratic(outputs, center):
  difference = outputs - center
  return difference @ CURVATURE @ difference / 2


def make_quadratic_learner(gradient='exact', **config):
  model = Model(
    lambda key: ({'encoder': jnp.zeros(DIM)}, {}),
    lambda params, stats, inputs, *, train: (params['encoder'], stats),
  )
  config = InnerConfig(num_steps=STEPS, encoder_lr=0.1, **config)
  outer = OuterConfig(gradient)
  return make_learner(model, config, outer, loss_fn=quadratic, metric_fns={})


def make_episodes():
  """Returns tasks with random centers as targets and without inputs."""
  center = np.random.RandomState(0).randn(2, TASKS, DIM)
  inputs = jnp.zeros((TASKS, 0))
  support, query = (Batch(inputs, jnp.array(c)) for c in center)
  return Episode(support, query)


def after_steps(config, w, center, steps=STEPS, gradient='exact'):
  """Returns w after K steps and its Jacobian, by matrix powers."""
  eye, zero = np.eye(DIM), np.zeros((DIM, DIM))
  mu, decay = config.get('momentum', 0.0), config.get('weight_decay', 0.0)

  def step_matrix(curvature):
    gradient = curvature + decay * eye
    buffer = np.block([gradient, mu * eye])
    update = np.block([eye, zero]) - 0.1 * buffer
    return np.block([[update], [buffer]])

  state = np.concatenate([w, np.zeros(DIM)])
  shift = CURVATURE @ center
  for _ in range(steps):
    offset = np.concatenate([-0.1 * shift, shift])
    state = step_matrix(CURVATURE) @ state - offset
  hessian = 0 * CURVATURE if gradient == 'first_order' else CURVATURE
  jacobian = np.linalg.matrix_power(step_matrix(hessian), steps)
  return state[:DIM], jacobian[:DIM, :DIM]


@pytest.mark.parametrize('mixed_mode', [False, True])
@pytest.mark.parametrize(
  'loop',
  [{}, {'remat': False}, {'remat': False, 'unroll': True}],
  ids=['remat', 'stored', 'unrolled'],
)
@pytest.mark.parametrize('gradient', ['exact', 'first_order'])
@pytest.mark.parametrize('config', SETTINGS, ids=str)
def test_meta_gradient_equals_closed_form(config, gradient, loop, mixed_mode):
  learner = make_quadratic_learner(
    gradient, **config, **loop, mixed_mode=mixed_mode
  )
  episodes = make_episodes()
  w = np.array([0.4, -1.0, 0.7])
  grads, _, metrics = jax.jit(
    lambda w, episodes: meta_gradient(learner, {'encoder': w}, {}, episodes)
  )(w, episodes)
  expected, losses = np.zeros(DIM), []
  for c_support, c_query in zip(
    episodes.support.targets, episodes.query.targets, strict=True
  ):
    adapted, jacobian = after_steps(
      config, w, np.asarray(c_support), gradient=gradient
    )
    slope = CURVATURE @ (adapted - np.asarray(c_query))
    expected += jacobian.T @ slope / TASKS
    losses.append(quadratic(adapted, np.asarray(c_query)))
  np.testing.assert_allclose(grads['encoder'], expected, atol=1e-12)
  np.testing.assert_allclose(metrics['loss'], losses, atol=1e-12)


@pytest.mark.parametrize('config', SETTINGS, ids=str)
def test_observations_equal_closed_form_after_each_step(config):
  learner = make_quadratic_learner(**config)
  support = jax.tree.map(lambda x: x[0], make_episodes().support)
  w = jnp.array([0.5, -1.0, 2.0])

  def observe(params, stats):
    return {'w': params['encoder'], 'stats': stats}

  for at in (None, (0, 2, STEPS), (3,), (0,)):
    run = jax.jit(learner.adapt_and_observe, static_argnums=(3, 4))
    observed = run({'encoder': w}, {}, support, observe, at)
    expected = [
      after_steps(config, w, support.targets, k)[0]
      for k in (at or range(STEPS + 1))
    ]
    np.testing.assert_allclose(observed['w'], np.stack(expected), rtol=1e-12)


def test_zero_steps_leave_parameters_unchanged():
  learner = make_learner(
    Model(None, lambda p, s, inputs, *, train: (p['encoder'], s)),
    InnerConfig(num_steps=0),
    loss_fn=quadratic,
    metric_fns={},
  )
  support = jax.tree.map(lambda x: x[0], make_episodes().support)
  w = {'encoder': jnp.arange(3.0)}
  adapted, _, losses = learner.adapt(w, {}, support)
  np.testing.assert_array_equal(adapted['encoder'], w['encoder'])
  assert losses.shape == (0,)


def encoder_and_head():
  """Returns an encoder with a batch norm, and a head with a temperature."""
  return {
    'encoder': {
      'conv1': {'kernel': jnp.ones(2), 'bn': {'bias': jnp.ones(1)}},
    },
    'classifier': {'kernel': jnp.ones(2), 'temperature': jnp.ones(())},
  }


def sum_of_squares(params, stats, support):
  del support
  return sum((x**2).sum() for x in jax.tree.leaves(params)) / 2, stats


def test_learning_rates_differ_and_frozen_parameters_are_unchanged():
  config = InnerConfig(
    num_steps=1, encoder_lr=0.1, classifier_lr=0.5, frozen=('bn',)
  )
  adapted, *_ = adapt(sum_of_squares, config, encoder_and_head(), {}, None)
  np.testing.assert_allclose(adapted['encoder']['conv1']['kernel'], 0.9)
  np.testing.assert_allclose(adapted['classifier']['kernel'], 0.5)
  np.testing.assert_array_equal(adapted['encoder']['conv1']['bn']['bias'], 1)
  np.testing.assert_array_equal(adapted['classifier']['temperature'], 1)


def test_zero_learning_rates_leave_parameters_unchanged():
  config = InnerConfig(num_steps=3, encoder_lr=0.0, classifier_lr=0.0)
  params = encoder_and_head()
  adapted, *_ = adapt(sum_of_squares, config, params, {}, None)
  jax.tree.map(np.testing.assert_array_equal, adapted, params)


def test_reset_head_starts_at_zero_with_gradient():
  config = InnerConfig(num_steps=1, classifier_lr=0.5, head='zero')

  def loss(params, stats, support):
    return (params['classifier']['kernel'] ** 2 - support).sum(), stats

  def outer(params):
    params = reset_params(config, params)
    adapted, *_ = adapt(loss, config, params, {}, jnp.ones(2))
    return adapted['classifier']['kernel'].sum()

  value, grads = jax.value_and_grad(outer)(encoder_and_head())
  assert value == 0  # 0 - 0.5 * 2 * 0
  # d/dw (w - 0.5 * 2 w) = 0 at the zero head, which has the gradient of w
  np.testing.assert_array_equal(grads['classifier']['kernel'], 0)
  config = InnerConfig(num_steps=0, head='zero')
  grads = jax.grad(outer)(encoder_and_head())
  np.testing.assert_array_equal(grads['classifier']['kernel'], 1)


def test_frozen_parameters_are_not_carried_by_the_scan():
  """Frozen parameters need no memory per inner step."""
  params = encoder_and_head() | {'encoder': {'kernel': jnp.ones(1234)}}
  config = InnerConfig(momentum=0.9, frozen=('encoder',))
  jaxpr = jax.make_jaxpr(
    lambda p: adapt(sum_of_squares, config, p, {}, None)[0]
  )(params)
  scan = next(e for e in jaxpr.eqns if e.primitive.name == 'scan')
  # Outputs are the carry and the losses; frozen parameters are only inputs.
  assert sum(v.aval.size for v in scan.outvars) < 20


def make_full_outer_gradient(mixed_mode, remat=False):
  """Makes an outer gradient that covers every path of derivatives.

  The statistics have a float, which carries derivatives from step to step, and
  an integer count, which does not. One parameter is frozen, and the head starts
  at zero.

  Returns:
    The gradient function, and its arguments.
  """
  config = InnerConfig(
    num_steps=3,
    encoder_lr=0.3,
    classifier_lr=0.5,
    momentum=0.5,
    weight_decay=0.01,
    frozen=('shift',),
    head='zero',
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

  def outer(params, mean, inputs):
    support = Batch(inputs, jnp.arange(len(inputs)) % 3)
    stats = {'mean': mean, 'count': jnp.int32(0)}
    params = reset_params(config, params)
    adapted, stats, losses, _ = adapt(loss_fn, config, params, stats, support)
    total = sum(jnp.sin(x).sum() for x in jax.tree.leaves(adapted))
    return total + (stats['mean'] ** 3).sum() + losses @ jnp.arange(1.0, 4)

  r = np.random.RandomState(0)
  encoder = {'kernel': r.randn(5, 4), 'shift': r.randn(4)}
  params = {'encoder': encoder, 'classifier': {'kernel': r.randn(4, 3)}}
  args = jax.tree.map(jnp.array, (params, r.randn(4), r.randn(2, 30, 5)))
  return jax.vmap(jax.grad(outer, (0, 1, 2)), (None, None, 0)), args


@pytest.mark.parametrize('remat', [True, False])
def test_mixed_mode_has_every_derivative(remat):
  default, args = make_full_outer_gradient(False)
  expected = jax.jit(default)(*args)
  mixed, _ = make_full_outer_gradient(True, remat)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-12),
    jax.jit(mixed)(*args),
    expected,
  )
  assert all(np.abs(x).max() > 0.01 for x in jax.tree.leaves(expected))


def test_mixed_mode_stores_no_activations():
  def largest_scan_output(mixed_mode):
    run, args = make_full_outer_gradient(mixed_mode)
    eqns = jax.make_jaxpr(run)(*args).eqns
    scan = next(e for e in eqns if e.primitive.name == 'scan')
    return max(v.aval.size for v in scan.outvars)

  activations = 3 * 2 * 30 * 4  # steps, tasks, images, features
  assert largest_scan_output(False) >= activations
  assert activations > 2 * largest_scan_output(True)


@pytest.mark.parametrize(
  'pattern, path, expected',
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
def test_patterns_match_consecutive_parts(pattern, path, expected):
  assert path_matches(pattern, path) is expected


def test_pattern_without_match_is_an_error():
  with pytest.raises(UserError, match="'conv9' matches no parameter") as error:
    param_labels(InnerConfig(frozen=('bn', 'conv9')), encoder_and_head())
  assert 'encoder/conv1/bn/bias' in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'path',
  [('classifier',), ('params', 'classifier'), ('net/classifier',)],
  ids='/'.join,
)
def test_head_may_be_anywhere_in_the_parameters(path):
  """As in the params of Linen and Haiku."""
  head = {'kernel': jnp.ones((2, 3)), 'bias': jnp.ones(3)}
  params = {'encoder': {'w': jnp.ones(2)}}
  node = params
  for key in path[:-1]:
    node = node.setdefault(key, {})
  node[path[-1]] = head
  config = InnerConfig(num_steps=1, encoder_lr=0.1, classifier_lr=0.5)
  adapted, *_ = adapt(sum_of_squares, config, params, {}, None)
  np.testing.assert_allclose(adapted['encoder']['w'], 0.9)
  for key in path:
    adapted = adapted[key]
  np.testing.assert_allclose(adapted['kernel'], 0.5)
  zero = reset_params(InnerConfig(head='zero'), params)
  for key in path:
    zero = zero[key]
  np.testing.assert_array_equal(zero['bias'], 0)
  np.testing.assert_array_equal(
    reset_params(InnerConfig(head='zero'), params)['encoder']['w'], 1
  )


@pytest.mark.parametrize(
  'params, rates, name',
  [
    ({'body': 0, 'head': 0}, {'classifier_lr': 0.5}, 'classifier_lr=0.5'),
    ({'classifier': 0}, {'encoder_lr': 0.0}, 'encoder_lr=0.0'),
    ({'head': 0}, {'classifier_lr': 0.5, 'encoder_lr': 0.5}, None),
    ({'head': 0}, {'encoder_lr': 0.5}, None),
  ],
)
def test_rate_that_applies_to_no_parameter_is_an_error(params, rates, name):
  if name is None:
    assert param_labels(InnerConfig(**rates), params) == {'head': 'encoder'}
    return
  with pytest.raises(UserError, match=f'inner.{name} applies to no') as error:
    param_labels(InnerConfig(**rates), params)
  assert all(key in str(error.value) for key in params)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class CallableParams:
  """A pytree that can be called, such as an Equinox module."""

  weight: jax.Array

  def __call__(self, x):
    return self.weight * x


@pytest.mark.parametrize('stats', [None, {}])
def test_params_may_be_callable_and_stats_none(stats):
  model = Model(None, lambda params, stats, x, *, train: (params(x), stats))
  learner = make_learner(
    model,
    InnerConfig(num_steps=2, encoder_lr=0.25),
    loss_fn=lambda outputs, targets: jnp.square(outputs - targets).mean() / 2,
    metric_fns={},
  )
  params = CallableParams(jnp.array(3.0))
  batch = Batch(jnp.ones(2), jnp.zeros(2))
  adapted, new_stats, _ = learner.adapt(params, stats, batch)
  np.testing.assert_allclose(adapted.weight, 3 * 0.75**2)
  assert new_stats == stats
  episodes = jax.tree.map(lambda x: x[None], Episode(batch, batch))
  grads, new_stats, _ = meta_gradient(learner, params, stats, episodes)
  np.testing.assert_allclose(grads.weight, 3 * 0.75**4)
  assert new_stats == stats
  tx = make_optimizer('adam', 0.1, weight_decay=0.1, lr_scale=(('weight', 2),))
  updates, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_allclose(updates.weight, -0.2, rtol=1e-5)
