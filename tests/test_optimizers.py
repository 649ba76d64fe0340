"""Compares the outer optimizers with PyTorch's update rules in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from maml_jax.experiment.optimizers import (
  OPTIMIZERS,
  make_optimizer,
  make_schedule,
)
from maml_jax.utils.errors import UserError

GRADS = np.array([[0.5, -30.0], [0.2, 4.0], [-1.0, 12.0], [0.0, -0.1]])
START, LR, DECAY, CLIP = np.array([1.0, -2.0]), 0.1, 0.05, 10.0


def torch_updates(name, decay):
  """Returns the parameters after each step, by PyTorch's documentation."""
  p, m, v, out = START.copy(), np.zeros(2), np.zeros(2), []
  for t, g in enumerate(np.clip(GRADS, -CLIP, CLIP), 1):
    if name == 'adamw':
      p = p - LR * decay * p
    else:
      g = g + decay * p
    if name == 'sgd':
      m = 0.9 * m + g if t > 1 else g
      p = p - LR * m
    elif name == 'rmsprop':
      v = 0.99 * v + 0.01 * g**2
      p = p - LR * g / (np.sqrt(v) + 1e-8)
    else:
      m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
      m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
      p = p - LR * m_hat / (np.sqrt(v_hat) + 1e-8)
    out.append(p)
  return np.array(out)


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


@pytest.mark.parametrize('decay', [0.0, DECAY])
@pytest.mark.parametrize('name', OPTIMIZERS)
def test_updates_equal_those_of_pytorch(name, decay):
  tx = make_optimizer(name, LR, weight_decay=decay, clip_value=CLIP)
  params = jnp.array(START)
  state, out = tx.init(params), []
  for g in GRADS:
    updates, state = tx.update(jnp.array(g), state, params)
    params = optax.apply_updates(params, updates)
    out.append(params)
  np.testing.assert_allclose(out, torch_updates(name, decay), atol=1e-12)


def test_schedules_change_between_epochs():
  steps = jnp.arange(40)
  step = make_schedule(
    0.1, schedule='step', milestones=(2, 3), gamma=0.5, steps_per_epoch=10
  )
  expected = np.repeat([0.1, 0.1, 0.05, 0.025], 10)
  np.testing.assert_allclose([step(s) for s in steps], expected, rtol=1e-6)
  cosine = make_schedule(
    0.1, schedule='cosine', milestones=(4,), steps_per_epoch=10
  )
  expected = [0.05 * (1 + math.cos(math.pi * (s // 10) / 4)) for s in range(40)]
  np.testing.assert_allclose([cosine(s) for s in steps], expected, rtol=1e-5)


def test_warmup_increases_the_rate_in_every_step():
  rate = make_schedule(0.1, warmup_epochs=2, steps_per_epoch=5)
  rates = [float(rate(jnp.int32(s))) for s in range(12)]
  expected = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
  expected += [0.07, 0.08, 0.09, 0.1, 0.1, 0.1]
  np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_unknown_names_raise_user_errors():
  with pytest.raises(UserError, match="unknown outer.optimizer 'adm'"):
    make_optimizer('adm', 0.1)
  with pytest.raises(UserError, match="unknown outer.schedule 'steps'"):
    make_schedule(0.1, schedule='steps')
  with pytest.raises(UserError, match='requires outer.milestones'):
    make_schedule(0.1, schedule='cosine')
