"""The MAML family: compiled programs, derivatives, devices, settings."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import CASES, Case, cases

from maml_jax.inner_loop import init_learned
from maml_jax.learner import (
  Batch,
  Episode,
  InnerConfig,
  Model,
  OuterConfig,
  make_learner,
  meta_gradient,
)
from maml_jax.sharding import make_mesh
from maml_jax.utils.errors import UserError


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


# Settings without a golden case of their own: (case, inner settings). Where a
# gradient is near 0, eps_root bounds the derivative of Adam and RMSprop.
SMOOTH = {'eps_root': 1e-2}
VARIANTS = {
  'rmsprop': (
    'inner_adam',
    {'optimizer': 'rmsprop', 'momentum': 0.5, **SMOOTH},
  ),
  'adam_per_step': (
    'maml_plus_plus',
    {
      'optimizer': 'adam',
      'weight_decay': 0.01,
      'class_weights': 'balanced',
      **SMOOTH,
    },
  ),
  'curvature_momentum': (
    'meta_curvature',
    {'momentum': 0.5, 'weight_decay': 0.01, 'proximal': 0.3},
  ),
  'prototype_frozen': ('proto_maml', {'frozen': ('linear1',), 'momentum': 0.9}),
  'zero_momentum': (
    'cavia',
    {'momentum': 0.9, 'optimizer': 'rmsprop', **SMOOTH},
  ),
}


def assert_close(a, b, tolerance=1e-12):
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), a, b
  )


def load_variant(name):
  stem, inner = VARIANTS[name]
  case = find_case(stem)
  case.inner |= inner
  return case


def gradient(case, mesh=None, **inner):
  """Returns the meta-gradient and the metrics of a case."""
  grads, _, metrics = meta_gradient(
    case.learner(**inner),
    case.params,
    {},
    case.episodes,
    epoch=case.epoch,
    mesh=mesh,
  )
  return grads, metrics


@pytest.mark.parametrize('file', cases())
def test_two_devices_give_the_same_results(file):
  """Golden files check the compiled gradient on one device."""
  case = Case(file)
  mesh = make_mesh(jax.devices()[:2])
  assert_close(
    jax.jit(lambda: gradient(case, mesh))(), jax.jit(lambda: gradient(case))()
  )


@pytest.mark.parametrize('name', ['maml_plus_plus', 'proto_maml'])
def test_jitted_equals_op_by_op(name):
  check_programs(find_case(name))


@pytest.mark.slow
@pytest.mark.parametrize('name', VARIANTS)
def test_variant_is_right_jitted_op_by_op_and_on_two_devices(name):
  check_programs(load_variant(name))


def check_programs(case):
  if case.inner['num_steps'] > 10:  # op by op, K steps take K times as long
    case.inner['num_steps'] = 4
  jitted = jax.jit(lambda: gradient(case))()
  mesh = make_mesh(jax.devices()[:2])
  assert_close(jax.jit(lambda: gradient(case, mesh))(), jitted)
  with jax.disable_jit():
    assert_close(gradient(case), jitted, 1e-11)
  if case.outer.gradient == 'exact':
    assert_close(jax.jit(lambda: gradient(case, mixed_mode=True))(), jitted)


@pytest.mark.parametrize('file', cases())
def test_gradients_equal_finite_differences(file):
  check_derivatives(Case(file))


@pytest.mark.parametrize('name', VARIANTS)
def test_variant_has_the_derivative_of_its_loss(name):
  check_derivatives(load_variant(name))


def check_derivatives(case):
  """Compares derivatives along a random direction for each kind of value."""
  if case.outer.gradient != 'exact':
    pytest.skip(f'the gradient is {case.outer.gradient}, not the derivative')
  if case.inner['rule'] == 'alfa':
    # The gradients that enter its network are constants; in the first step they
    # do not depend on what it learns.
    case.inner['num_steps'] = 1
  learner = case.learner()

  @jax.jit
  def loss(params):
    losses = jax.vmap(
      lambda episode: learner.loss(params, {}, episode, case.epoch)[0]
    )
    return losses(case.episodes).mean()

  grads = jax.jit(jax.grad(loss))(case.params)
  r = np.random.RandomState(0)
  kinds = ['encoder', 'classifier', *case.params.get('inner', {})]
  if case.inner['head'] != 'learned':
    kinds.remove('classifier')  # replaced at the start of each task
  if case.inner['rule'] == 'alfa':
    kinds = ['alfa']
  for kind in kinds:
    direction = jax.tree.map(jnp.zeros_like, case.params)
    part = direction if kind in direction else direction['inner']
    part[kind] = jax.tree.map(
      lambda x: jnp.array(r.randn(*x.shape)), part[kind]
    )
    step = 1e-5
    up, down = (
      loss(jax.tree.map(lambda x, d, s=s: x + s * d, case.params, direction))
      for s in (step, -step)
    )
    products = jax.tree.map(jnp.vdot, grads, direction)
    expected = sum(jax.tree.leaves(products))
    np.testing.assert_allclose((up - down) / (2 * step), expected, rtol=1e-5)


def find_case(name):
  return Case(next(file for file in CASES if file.stem == name))


@pytest.mark.parametrize('name', ['unicorn', 'cavia', 'proto_maml'])
@pytest.mark.parametrize(
  'inner',
  [
    {'learn_lr': 'tensor'},
    {'learn_lr': 'parameter', 'per_step': ('lr',)},
    {'per_step': ('encoder/linear1',)},
  ],
  ids=str,
)
def test_heads_and_zeros_leave_learned_quantities_unchanged(name, inner):
  """Rates and rows at their initial values adapt like fixed ones."""
  case = find_case(name)
  if 'encoder/linear1' in inner.get('per_step', ()):
    case.inner['frozen'] = (*case.inner['frozen'], 'encoder/linear1')
  learner = case.learner(**inner)
  params = init_learned(learner.inner, case.params, jax.random.key(0))
  reset = learner.reset_head(params)['inner']
  jax.tree.map(np.testing.assert_array_equal, reset, params['inner'])
  support = jax.tree.map(lambda x: x[0], case.episodes.support)
  adapted, _, _ = jax.jit(learner.adapt)(params, {}, support)
  expected, _, _ = jax.jit(case.learner().adapt)(case.params, {}, support)
  assert_close(adapted, expected)


def test_implicit_gradient_equals_unrolled_gradient_of_3000_steps():
  case = find_case('imaml')
  implicit, metrics = jax.jit(lambda: gradient(case))()
  unrolled = case.learner(OuterConfig(), num_steps=3000)
  expected = jax.jit(
    lambda: meta_gradient(unrolled, case.params, {}, case.episodes)[0]
  )()
  scale = max(np.abs(x).max() for x in jax.tree.leaves(expected))
  assert_close(implicit, expected, 1e-6 * scale)
  assert metrics['cg_residual'].shape == (2,)
  assert metrics['cg_residual'].max() < 1e-12


def test_implicit_gradient_covers_frozen_parameters():
  """The mixed derivative, against the unrolled gradient."""
  case = find_case('imaml')
  frozen = {'frozen': ('linear1',), 'encoder_lr': 0.2, 'classifier_lr': 0.2}
  implicit, _ = jax.jit(lambda: gradient(case, **frozen, num_steps=500))()
  unrolled = case.learner(OuterConfig(), **frozen, num_steps=3000)
  expected = jax.jit(
    lambda: meta_gradient(unrolled, case.params, {}, case.episodes)[0]
  )()
  assert np.abs(expected['encoder']['linear1']['kernel']).max() > 1e-3
  assert_close(implicit, expected, 1e-7)


def test_implicit_gradient_needs_an_adapted_parameter():
  with pytest.raises(UserError, match='leaves no parameter to adapt'):
    gradient(find_case('imaml'), frozen=('encoder', 'classifier'))


def test_memory_of_implicit_gradient_does_not_grow_with_steps():
  case = find_case('imaml')

  def temporary_bytes(num_steps):
    run = jax.jit(lambda p: gradient_of(case, p, num_steps))
    return run.lower(case.params).compile().memory_analysis().temp_size_in_bytes

  def gradient_of(case, params, num_steps):
    learner = case.learner(num_steps=num_steps, remat=False)
    return meta_gradient(learner, params, {}, case.episodes)[0]

  assert temporary_bytes(16) < 1.05 * temporary_bytes(4)


@pytest.mark.parametrize('constant', [True, False])
def test_implicit_gradient_needs_constant_statistics(constant):
  def apply(params, stats, inputs, *, train):
    moment = (params['w'] * inputs).mean()
    moment = jax.lax.stop_gradient(moment) if constant else moment
    return params['w'] * inputs, {'moment': moment, 'count': stats['count'] + 1}

  learner = make_learner(
    Model(None, apply),
    InnerConfig(proximal=2.0),
    OuterConfig('implicit'),
    loss_fn=lambda outputs, targets: jnp.square(outputs - targets).mean(),
    metric_fns={},
  )
  params = {'w': jnp.ones(())}
  stats = {'moment': jnp.zeros(()), 'count': jnp.int32(0)}
  batch = Batch(jnp.ones(2), jnp.zeros(2))
  run = jax.jit(jax.grad(learner.loss, has_aux=True))
  if constant:
    _, (stats, _) = run(params, stats, Episode(batch, batch))
    assert stats['count'] == 5
    return
  with pytest.raises(UserError, match='statistics that carry derivatives'):
    run(params, stats, Episode(batch, batch))


def test_more_steps_than_trained_use_the_rates_of_the_last_step():
  case = find_case('maml_plus_plus')
  support = jax.tree.map(lambda x: x[0], case.episodes.support)
  rates = case.params['inner']['lr']
  more = jax.tree.map(lambda x: jnp.append(x, jnp.repeat(x[-1:], 2)), rates)
  params = {**case.params, 'inner': {'lr': more}}
  adapted, repeated = (
    case.learner(num_steps=5).adapt(p, {}, support)[0]
    for p in (case.params, params)
  )
  jax.tree.map(np.testing.assert_array_equal, adapted, repeated)


def test_loss_of_all_steps_is_that_of_the_last_step_after_loss_epochs():
  case = find_case('maml_plus_plus')
  episode = jax.tree.map(lambda x: x[0], case.episodes)
  learner = case.learner()
  last = case.learner(OuterConfig()).loss(case.params, {}, episode)[0]
  for epoch in (5, jnp.int32(5), 100):
    loss, (_, metrics) = learner.loss(case.params, {}, episode, epoch)
    np.testing.assert_allclose(loss, last, rtol=1e-14)
    np.testing.assert_allclose(metrics['loss'], last, rtol=1e-14)
  loss, (_, metrics) = learner.loss(case.params, {}, episode, 0)
  assert abs(loss - last) > 1e-3
  np.testing.assert_allclose(metrics['loss'], last, rtol=1e-14)


def test_first_order_epochs_come_before_exact_ones():
  outer = OuterConfig(first_order_epochs=3, loss_steps='all', loss_epochs=5)
  names = [
    (outer.at_epoch(e).gradient, outer.at_epoch(e).loss_steps)
    for e in (0, 2, 3, 4, 5)
  ]
  assert names == [
    ('first_order', 'all'),
    ('first_order', 'all'),
    ('exact', 'all'),
    ('exact', 'all'),
    ('exact', 'last'),
  ]
  case = find_case('anil')
  learner = case.learner(OuterConfig(first_order_epochs=3))
  episode = jax.tree.map(lambda x: x[0], case.episodes)
  with pytest.raises(UserError, match='at_epoch'):
    learner.loss(case.params, {}, episode, jnp.int32(0))

  def grads(learner, epoch):
    return jax.grad(lambda p: learner.loss(p, {}, episode, epoch)[0])(
      case.params
    )

  first_order = case.learner(OuterConfig('first_order'))
  assert_close(grads(learner, 2), grads(first_order, 0))
  assert_close(grads(learner, 3), grads(case.learner(OuterConfig()), 0))


def test_support_loss_may_be_of_its_own():
  """Adapts to minimize the distance of a number to 3, without targets."""
  model = Model(
    lambda key: ({'w': jnp.zeros(())}, {}),
    lambda params, stats, inputs, *, train: (params['w'] * inputs, stats),
  )

  def support_loss(params, stats, support):
    assert support.targets is None
    return (params['w'] - 3.0) ** 2 / 2, stats

  learner = make_learner(
    model,
    InnerConfig(num_steps=2, encoder_lr=0.5),
    loss_fn=lambda outputs, targets: jnp.square(outputs - targets).mean(),
    metric_fns={},
    support_loss_fn=support_loss,
  )
  episode = Episode(Batch(jnp.ones(1), None), Batch(jnp.ones(2), jnp.ones(2)))
  loss, (_, metrics) = learner.loss({'w': jnp.zeros(())}, {}, episode)
  np.testing.assert_allclose(loss, (3 * 0.75 - 1) ** 2)
  np.testing.assert_allclose(metrics['support_loss'], 4.5)


@pytest.mark.parametrize(
  'inner, outer, message',
  [
    ({'rule': 'alfa', 'momentum': 0.9}, {}, 'momentum=0.9 cannot be combined'),
    ({'rule': 'alfa', 'optimizer': 'adam'}, {}, 'optimizer=adam cannot be'),
    ({'rule': 'alfa', 'learn_lr': 'tensor'}, {}, 'learn_lr=tensor cannot'),
    ({'rule': 'alfa', 'precondition': 'kronecker'}, {}, 'precondition=kron'),
    ({'num_steps': -1}, {}, 'inner.num_steps=-1: must be at least 0'),
    ({'frozen': 'bn'}, {}, "inner.frozen='bn': must be a tuple"),
    ({}, {'temperature': 0.0}, 'outer.temperature=0.0: must be positive'),
    ({'per_step': ('lr',)}, {}, 'needs learned rates'),
    ({'lr_bounds': (0.0, 1.0)}, {}, 'needs learned rates'),
    ({'learn_lr': 'group', 'lr_bounds': (1.0, 0.0)}, {}, '(lowest, highest)'),
    ({'optimizer': 'adam', 'momentum': 0.9}, {}, 'set inner.b1 instead'),
    ({'optimizer': 'adagrad'}, {}, 'inner.optimizer'),
    ({}, {'gradient': 'implicit'}, 'needs inner.proximal'),
    ({'proximal': 2.0, 'momentum': 0.5}, {'gradient': 'implicit'}, 'momentum'),
    ({'proximal': 2.0, 'mixed_mode': True}, {'gradient': 'implicit'}, 'mixed'),
    ({'proximal': 2.0, 'learn_lr': 'group'}, {'gradient': 'implicit'}, 'learn'),
    ({'learn_lr': 'group'}, {'gradient': 'reptile'}, 'learned quantities'),
    (
      {},
      {'gradient': 'reptile', 'loss_steps': 'all', 'loss_epochs': 3},
      'loss_steps=all',
    ),
    ({}, {'loss_steps': 'all'}, 'needs outer.loss_epochs'),
    (
      {'num_steps': 0},
      {'loss_steps': 'all', 'loss_epochs': 3},
      'num_steps of at least 1',
    ),
    ({}, {'gradient': 'implicit', 'first_order_epochs': 3}, 'needs outer.grad'),
    ({'head': 'prototype'}, {}, 'Model(init, apply, features)'),
  ],
)
def test_settings_that_exclude_each_other_are_errors(inner, outer, message):
  model = Model(None, None)
  with pytest.raises(UserError) as error:
    make_learner(model, InnerConfig(**inner), OuterConfig(**outer))
  assert message in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'params, inner, message',
  [
    ({'w': 0, 'inner': 0}, {}, "top-level key 'inner'"),
    ([0, 1], {'learn_lr': 'tensor'}, 'nested dicts, not list'),
    ({'w': 0}, {'per_step': ('v',)}, "inner.per_step: 'v' matches no"),
    ({'w': 0}, {'per_step': ('w',)}, 'w is adapted in the inner loop'),
    ({'w': 0}, {'zero': ('v',)}, "inner.zero: 'v' matches no"),
    ({'w': 0}, {'head': 'zero'}, 'matches no parameter'),
    ({'w': 0}, {'frozen': ('!v',)}, "inner.frozen: 'v' matches no"),
  ],
)
def test_parameters_that_do_not_fit_the_settings_are_errors(
  params, inner, message
):
  params = jax.tree.map(jnp.float32, params)
  model = Model(
    lambda key: (params, {}),
    lambda params, stats, inputs, *, train: (inputs, stats),
  )
  learner = make_learner(model, InnerConfig(**inner), metric_fns={})
  with pytest.raises(UserError) as error:
    learner.adapt(*learner.init(jax.random.key(0)), Batch(jnp.zeros((1, 2)), 0))
  assert message in str(error.value)
