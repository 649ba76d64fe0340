"""Learned quantities of the inner loop: shapes, initial values, transfer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax import inner_loop
from maml_jax.experiment.optimizers import make_optimizer
from maml_jax.experiment.transfer import transfer_params
from maml_jax.learner import Batch, InnerConfig, make_learner
from maml_jax.models import make_model
from maml_jax.utils.errors import UserError

STEPS = 3
FROZEN = {'frozen': ('bn',), 'num_steps': STEPS, 'classifier_lr': 0.02}


def params_of(ways=4):
  ones = jnp.ones
  conv = {'kernel': ones((3, 3, 2, 5)), 'bias': ones(5)}
  return {
    'encoder': {'conv1': {'conv': conv, 'bn': {'scale': 2 * ones(5)}}},
    'classifier': {'kernel': ones((7, ways)), 'bias': ones(ways)},
  }


def init(ways=4, **inner):
  config = InnerConfig(**FROZEN | inner)
  params = params_of(ways)
  return inner_loop.init_learned(config, params, jax.random.key(0))


def shapes(tree):
  return {path: x.shape for path, x in inner_loop.flatten(tree)[0].items()}


CONV, HEAD = 'encoder/conv1/conv', 'classifier'
ADAPTED = {
  f'{CONV}/kernel': (3, 3, 2, 5),
  f'{CONV}/bias': (5,),
  f'{HEAD}/kernel': (7, 4),
  f'{HEAD}/bias': (4,),
}


ALFA = {
  **{f'alfa/lr/{path}': (STEPS,) for path in ADAPTED},
  **{f'alfa/decay/{path}': (STEPS,) for path in ADAPTED},
  'alfa/mlp/linear1/kernel': (8, 8),
  'alfa/mlp/linear1/bias': (8,),
  'alfa/mlp/linear2/kernel': (8, 8),
  'alfa/mlp/linear2/bias': (8,),
}


@pytest.mark.parametrize(
  'inner, expected',
  [
    ({}, {}),
    ({'learn_lr': 'group'}, {'lr/encoder': (), 'lr/classifier': ()}),
    ({'learn_lr': 'tensor'}, {f'lr/{p}': () for p in ADAPTED}),
    ({'learn_lr': 'parameter'}, {f'lr/{p}': s for p, s in ADAPTED.items()}),
    (
      {'learn_lr': 'parameter', 'per_step': ('lr',)},
      {f'lr/{p}': (STEPS, *s) for p, s in ADAPTED.items()},
    ),
    (
      {'per_step': ('bn',)},
      {'per_step/encoder/conv1/bn/scale': (STEPS, 5)},
    ),
    (
      {'precondition': 'kronecker'},
      {
        f'precondition/{CONV}/kernel/in': (2, 2),
        f'precondition/{CONV}/kernel/out': (5, 5),
        f'precondition/{CONV}/kernel/spatial': (9, 9),
        f'precondition/{CONV}/bias/scale': (5,),
        f'precondition/{HEAD}/kernel/in': (7, 7),
        f'precondition/{HEAD}/kernel/out': (4, 4),
        f'precondition/{HEAD}/bias/scale': (4,),
      },
    ),
    ({'rule': 'alfa'}, ALFA),
  ],
  ids=str,
)
def test_learned_quantities_have_the_documented_shapes(inner, expected):
  assert shapes(init(**inner).get('inner', {})) == expected


@pytest.mark.parametrize(
  'inner',
  [
    {'learn_lr': 'group', 'per_step': ('lr',)},
    {'learn_lr': 'parameter'},
    {'precondition': 'kronecker'},
    {'per_step': ('bn',)},
    {'rule': 'alfa'},
    {'rule': 'alfa', 'weight_decay': 0.1},
  ],
  ids=str,
)
def test_untrained_methods_adapt_like_maml(inner):
  """Initial rates, matrices and networks change nothing."""
  r = np.random.RandomState(0)
  params = jax.tree.map(lambda x: jnp.array(r.rand(*x.shape)), params_of())

  def loss(params, stats, support):
    sizes = (jnp.square(x).sum() for x in jax.tree.leaves(params))
    return sum(sizes) / 2, stats

  def adapt(**inner):
    config = InnerConfig(**FROZEN | inner)
    meta = inner_loop.init_learned(config, params, jax.random.key(0))
    return inner_loop.adapt(loss, config, meta, {}, None)[0]

  plain = adapt(weight_decay=inner.get('weight_decay', 0.0))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6),
    adapt(**inner),
    plain,
  )


def build_learner(ways, **inner):
  model = make_model('mlp', ways, (6,), width=5)
  return make_learner(model, InnerConfig(num_steps=2, **inner))


LEARNED = [
  {'learn_lr': 'parameter'},
  {'learn_lr': 'parameter', 'per_step': ('lr',)},
  {'learn_lr': 'tensor', 'per_step': ('lr',)},
  {'precondition': 'kronecker'},
  {'rule': 'alfa', 'weight_decay': 0.1},
]


@pytest.mark.parametrize('head', ['zero', 'prototype'])
@pytest.mark.parametrize('inner', LEARNED, ids=str)
def test_initial_head_keeps_learned_quantities(head, inner):
  """With the initial values of the quantities, the steps are plain SGD."""
  r = np.random.RandomState(0)
  support = Batch(jnp.float32(r.randn(6, 6)), jnp.arange(6) % 3)
  decay = {'weight_decay': inner.get('weight_decay', 0.0)}

  def adapt(**inner):
    learner = build_learner(3, head=head, classifier_lr=0.5, **inner)
    params, stats = learner.init(jax.random.key(0))
    kept = learner.reset_head(params).get('inner')
    jax.tree.map(np.testing.assert_array_equal, kept, params.get('inner'))
    return learner.adapt(params, stats, support)[0]

  plain = adapt(**decay)
  assert (jnp.abs(plain['classifier']['kernel']) > 1e-3).any()
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
    adapt(**inner),
    plain,
  )


def test_prototypes_are_computed_with_the_parameters_of_the_first_step():
  """`features` of the model receives no learned quantities."""
  r = np.random.RandomState(0)
  support = Batch(jnp.float32(r.rand(3, 16, 16, 1)), jnp.arange(3))
  model = make_model('convnet4', 3, (16, 16, 1), width=4)

  def adapt(**inner):
    config = InnerConfig(num_steps=1, frozen=('bn',), head='prototype', **inner)
    learner = make_learner(model, config)
    params, stats = learner.init(jax.random.key(0))
    return learner.adapt(params, stats, support)[0]

  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
    adapt(learn_lr='tensor', per_step=('lr', 'bn')),
    adapt(),
  )


@pytest.mark.parametrize('inner', LEARNED, ids=str)
def test_other_numbers_of_ways_do_not_depend_on_the_order_of_classes(inner):
  """A checkpoint of 3 ways, with random learned values, adapts to 5 ways."""
  inner = {'head': 'zero', **inner}
  params, stats = build_learner(3, **inner).init(jax.random.key(0))
  r = np.random.RandomState(0)
  params['inner'] = jax.tree.map(
    lambda x: x + 0.1 * jnp.float32(r.randn(*x.shape)), params['inner']
  )
  learner = build_learner(5, **inner)
  params, stats = transfer_params(learner, params, stats)
  inputs, query = jnp.float32(r.randn(10, 6)), jnp.float32(r.randn(4, 6))
  targets = jnp.arange(10) % 5
  permutation = jnp.array([3, 0, 4, 1, 2])

  def logits(targets):
    adapted, task_stats, _ = learner.adapt(
      params, stats, Batch(inputs, targets)
    )
    return learner.predict(adapted, task_stats, query)

  assert jnp.abs(logits(targets)).max() > 1e-3
  np.testing.assert_allclose(
    logits(permutation[targets])[:, permutation],
    logits(targets),
    rtol=1e-4,
    atol=1e-6,
  )


def test_averages_over_classes_keep_the_mean_of_matrices():
  config = InnerConfig(**FROZEN, precondition='kronecker', head='zero')
  params = init(**{'precondition': 'kronecker', 'head': 'zero'})
  matrix = jnp.arange(16.0).reshape(4, 4)
  params['inner']['precondition']['classifier']['kernel']['out'] = matrix
  fresh = init(2, precondition='kronecker', head='zero')['inner']
  learned = inner_loop.transfer_learned(config, params, fresh, (4, 2))
  out = learned['precondition']['classifier']['kernel']['out']
  diagonal, others = 30 / 4, (120 - 30) / 12
  expected = [[diagonal, others], [others, diagonal]]
  np.testing.assert_allclose(out, expected)


def test_new_quantities_of_a_checkpoint_start_fresh():
  """Per-step parameters start with the values that were shared before."""
  config = InnerConfig(**FROZEN, learn_lr='tensor', per_step=('lr', 'bn'))
  saved = params_of()
  fresh = init(learn_lr='tensor', per_step=('lr', 'bn'))['inner']
  saved['encoder']['conv1']['bn']['scale'] = jnp.arange(5.0)
  learned = inner_loop.transfer_learned(config, saved, fresh, (4, 4))
  np.testing.assert_allclose(learned['lr']['classifier']['bias'], [0.02] * 3)
  np.testing.assert_array_equal(
    learned['per_step']['encoder']['conv1']['bn']['scale'],
    np.tile(np.arange(5.0), (STEPS, 1)),
  )


def test_learner_without_values_per_step_takes_those_of_the_first():
  params, stats = build_learner(
    3, per_step=('dense1',), frozen=('dense1',)
  ).init(jax.random.key(0))
  kernel = params['inner']['per_step']['encoder']['dense1']['kernel']
  params['inner']['per_step']['encoder']['dense1']['kernel'] = kernel.at[1].set(
    0
  )
  new, _ = transfer_params(build_learner(3), params, stats)
  assert new.keys() == {'encoder', 'classifier'}
  np.testing.assert_array_equal(new['encoder']['dense1']['kernel'], kernel[0])


def test_rates_stay_within_bounds_and_ranges_are_reported():
  config = InnerConfig(**FROZEN, learn_lr='tensor', lr_bounds=(0.0, 0.5))
  params = init(learn_lr='tensor')
  params['inner']['lr']['classifier'] = {
    'kernel': jnp.float32(-1),
    'bias': jnp.float32(2),
  }
  ranges = inner_loop.learned_ranges(params)
  assert {name: float(x) for name, x in ranges.items()} == {
    'lr_min': -1,
    'lr_max': 2,
  }
  clipped = inner_loop.clip_learned_rates(config, params)
  assert clipped['inner']['lr']['classifier'] == {'kernel': 0, 'bias': 0.5}
  jax.tree.map(
    np.testing.assert_array_equal, clipped['encoder'], params['encoder']
  )
  assert inner_loop.learned_ranges(params_of()) == {}


def test_rate_table_averages_rates_of_entries():
  params = init(learn_lr='parameter', per_step=('lr',))
  rates = params['inner']['lr']['classifier']
  rates['bias'] = jnp.arange(12.0).reshape(3, 4)
  names, table = inner_loop.rate_table(params, per_step=True)
  assert names[0] == 'classifier/bias' and table.shape == (4, 3)
  np.testing.assert_allclose(table[0], [1.5, 5.5, 9.5])


def test_weight_decay_skips_what_the_inner_loop_learns():
  params = {'encoder': jnp.ones(2), 'inner': {'lr': jnp.ones(2)}}
  tx = make_optimizer('sgd', 1.0, momentum=0.0, weight_decay=0.1)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(zeros, tx.init(params), params)
  np.testing.assert_allclose(updates['encoder'], -0.1)
  np.testing.assert_array_equal(updates['inner']['lr'], 0)


def test_lr_scale_uses_the_first_pattern_that_matches():
  params = {'encoder': {'bn': 1.0, 'conv': 1.0}, 'inner': {'lr': 1.0}}
  params = jax.tree.map(jnp.float32, params)
  scale = (('inner/lr', 0.5), ('bn', 0.0), ('encoder', 3.0))
  tx = make_optimizer('sgd', 0.1, momentum=0.0, lr_scale=scale)
  updates, _ = tx.update(params, tx.init(params), params)
  expected = {'encoder': {'bn': 0.0, 'conv': -0.3}, 'inner': {'lr': -0.05}}
  jax.tree.map(np.testing.assert_allclose, updates, expected)


def test_lr_scale_rejects_a_pattern_that_matches_nothing():
  tx = make_optimizer('sgd', 0.1, lr_scale=(('encoder', 3.0), ('headd', 0.0)))
  with pytest.raises(UserError, match="outer.lr_scale: 'headd' matches no"):
    tx.init({'encoder': jnp.ones(2), 'head': jnp.ones(2)})
