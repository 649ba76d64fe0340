"""Sine waves from ten points, by a network written by hand.

    python examples/sinusoid.py

The first experiment of the MAML paper (section 5.1) with jax, optax and
`maml_jax.learner` alone. A model is two functions, a task is a pair of batches,
and the training loop is yours. Half a minute on one CPU core.
"""

import jax
import jax.numpy as jnp
import optax

from maml_jax.learner import (
  Batch,
  Episode,
  InnerConfig,
  Model,
  make_learner,
  meta_gradient,
  squared_error,
)


def init(key):
  keys, sizes = jax.random.split(key, 3), [(1, 40), (40, 40), (40, 1)]
  params = [
    {'w': jax.random.normal(k, size) / size[0] ** 0.5, 'b': jnp.zeros(size[1])}
    for k, size in zip(keys, sizes, strict=True)
  ]
  return params, {}  # no statistics


def apply(params, stats, x, *, train):
  *hidden, last = params
  for layer in hidden:
    x = jax.nn.relu(x @ layer['w'] + layer['b'])
  return x @ last['w'] + last['b'], stats


def sine(key):
  """One task: ten points to adapt to, ten others to be judged on."""
  x_key, amplitude_key, phase_key = jax.random.split(key, 3)
  x = jax.random.uniform(x_key, (20, 1), minval=-5, maxval=5)
  amplitude = jax.random.uniform(amplitude_key, minval=0.1, maxval=5)
  y = amplitude * jnp.sin(x + jax.random.uniform(phase_key, maxval=jnp.pi))
  return Episode(Batch(x[:10], y[:10]), Batch(x[10:], y[10:]))


def make(num_steps):
  inner = InnerConfig(num_steps=num_steps, encoder_lr=0.01)
  return make_learner(
    Model(init, apply), inner, loss_fn=squared_error, metric_fns={}
  )


def train(params, steps, tasks=25):
  learner, tx = make(num_steps=1), optax.adam(1e-3)

  @jax.jit
  def step(params, opt_state, key):
    episodes = jax.vmap(sine)(jax.random.split(key, tasks))
    grads, _, _ = meta_gradient(learner, params, {}, episodes)
    updates, opt_state = tx.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state

  opt_state = tx.init(params)
  for i in range(steps):
    params, opt_state = step(params, opt_state, jax.random.key(i))
  return params


def error(params, num_steps, tasks=1000):
  """Mean squared error after some inner steps, on tasks never trained on."""
  episodes = jax.vmap(sine)(jax.random.split(jax.random.key(-1), tasks))
  learner = make(num_steps)
  losses, _ = jax.jit(jax.vmap(lambda e: learner.loss(params, {}, e)))(episodes)
  return losses.mean()


def main(steps=15_000):
  random, _ = init(jax.random.key(0))
  learned = train(random, steps)
  result = {
    'random start, 10 steps': float(error(random, 10)),
    'learned start, 0 steps': float(error(learned, 0)),
    'learned start, 1 step': float(error(learned, 1)),
    'learned start, 10 steps': float(error(learned, 10)),
  }
  for name, value in result.items():
    print(f'{name:24} mean squared error {value:.2f}')
  return result


if __name__ == '__main__':
  main()
