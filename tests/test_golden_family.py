"""Compares the MAML family with results of the methods' published code.

Reads all *.json files in the directory $MAML_JAX_GOLDEN_FAMILY, by default
tests/golden_family. The README.md there documents the format. Everything runs
in float64 and through the public API.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from family_cases import CASES, Case, cases, get_leaf

from maml_jax.learner import meta_gradient
from maml_jax.outer_loss import step_weights


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


def assert_close(value, expected):
  expected = np.asarray(expected)
  assert np.shape(value) == expected.shape
  error = np.abs(value - expected) / np.maximum(1, np.abs(expected))
  assert error.max(initial=0) <= 1e-9


def assert_leaves_close(tree, expected):
  for path, value in (expected or {}).items():
    if value is not None:
      assert_close(get_leaf(tree, path), value)


@pytest.mark.parametrize(
  'remat', [True, pytest.param(False, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('file', cases())
def test_meta_gradient_equals_published_code(file, remat):
  case = Case(file)
  learner = case.learner(remat=remat)

  @jax.jit
  def run(params, episodes):
    grads, _, metrics = meta_gradient(
      learner, params, {}, episodes, epoch=case.epoch
    )
    losses = jax.vmap(
      lambda episode: learner.loss(params, {}, episode, case.epoch)[0]
    )(episodes)
    return grads, losses, metrics

  grads, losses, _ = run(case.params, case.episodes)
  expect = case.expect
  assert_close(losses, expect['task_losses'])
  assert_close(losses.mean(), expect['loss'])
  assert_leaves_close(grads, expect['grads'])
  assert_leaves_close(grads.get('inner', {}), expect['inner_grads'])
  assert_leaves_close(grads, expect.get('grads_through_zero_head'))


@pytest.mark.parametrize('file', cases())
def test_adaptation_equals_published_code(file):
  case = Case(file)
  learner, expect = case.learner(), case.expect

  @jax.jit
  def adapt(params, episode):
    adapted, stats, _ = learner.adapt(params, {}, episode.support)
    logits = learner.predict(adapted, stats, episode.query.inputs)
    steps = learner.adapt_and_observe(
      params,
      {},
      episode.support,
      lambda params, stats: (
        params,
        learner.evaluate(params, stats, episode.query)['loss'],
      ),
    )
    return adapted, logits / case.outer.temperature, *steps

  for i in range(len(case.json['episodes'])):
    episode = jax.tree.map(lambda x, i=i: x[i], case.episodes)
    adapted, logits, params, losses = adapt(case.params, episode)
    assert_close(logits, expect['logits'][i])
    if i == 0:
      assert_leaves_close(adapted, expect['adapted'])
      first = jax.tree.map(lambda x: x[0], params)
      head = expect.get('initial_head') or {}
      prefix = '' if any('/' in path for path in head) else 'classifier/'
      assert_leaves_close(
        first, {f'{prefix}{name}': value for name, value in head.items()}
      )
    if 'step_losses' in expect:
      assert_close(losses[1:], expect['step_losses'][i])
    if 'contexts' in expect:
      assert_close(adapted['context'], expect['contexts'][i])


@pytest.mark.parametrize('file', CASES, ids=[file.stem for file in CASES])
def test_step_weights_equal_published_code(file):
  case = Case(file)
  steps, epochs = case.inner['num_steps'], case.outer.loss_epochs
  if case.weights:
    for epoch in (case.epoch, jnp.int32(case.epoch)):
      assert_close(step_weights(steps, epoch, epochs), case.weights)
  for epoch, weights in case.expect.get('step_weights_by_epoch', {}).items():
    if int(epoch) < epochs:
      assert_close(step_weights(steps, int(epoch), epochs), weights)
    else:
      last = np.eye(steps)[-1]
      assert_close(step_weights(steps, int(epoch), epochs), last)
