"""Inputs that are no images, outputs that are no classes, a loss of your own.

    python examples/sensors.py

Eight sensors stand in a row, some of them silent, and somewhere among them is
what they listen to. A task is one place; sixteen readings must do to find it.
An input is a dict of values and a mask; an output is a dict, too: what is
expected, and how far off that may be. Less than a minute on one CPU core.
"""

import jax
import jax.numpy as jnp
import optax

from maml_jax.learner import Batch, Episode, InnerConfig, Model, make_learner
from maml_jax.train import init_state, make_train_step

SENSORS, WIDTH, READINGS, NOISE = 8, 64, 16, 0.1


def place(key):
  """One task: readings to adapt to, and others to be judged on."""
  where_key, value_key, mask_key, noise_key = jax.random.split(key, 4)
  where = jax.random.uniform(where_key, maxval=SENSORS - 1)
  weight = jnp.exp(-(jnp.square(jnp.arange(SENSORS) - where)) / 2)
  value = jax.random.normal(value_key, (2, READINGS, SENSORS))
  mask = jax.random.bernoulli(mask_key, 0.8, value.shape)
  noise = NOISE * jax.random.normal(noise_key, value.shape[:2])
  inputs = {'value': jnp.where(mask, value, 0.0), 'mask': mask}
  batches = Batch(inputs, value @ weight + noise)
  support, query = (jax.tree.map(lambda x, i=i: x[i], batches) for i in (0, 1))
  return Episode(support, query)


def init(key):
  sizes = (2 * SENSORS, WIDTH), (WIDTH, WIDTH), (WIDTH, 2)
  return {
    f'layer{i}': {
      'w': jax.random.normal(key, size) * (1 / size[0]) ** 0.5,
      'b': jnp.zeros(size[1]),
    }
    for i, (key, size) in enumerate(
      zip(jax.random.split(key, 3), sizes, strict=True)
    )
  }, {}


def apply(params, stats, inputs, *, train):
  x = jnp.concatenate([inputs['value'], inputs['mask']], axis=-1)
  for i in range(3):
    x = x @ params[f'layer{i}']['w'] + params[f'layer{i}']['b']
    x = jax.nn.relu(x) if i < 2 else x
  return {'mean': x[:, 0], 'deviation': 0.05 + jax.nn.softplus(x[:, 1])}, stats


def surprise(output, target):
  """Mean negative log likelihood of a normal distribution, in nats."""
  density = jax.scipy.stats.norm.logpdf(
    target, output['mean'], output['deviation']
  )
  return -density.mean()


def covered(output, target):
  """How often the target lies in the 95 % interval that is claimed."""
  return (abs(target - output['mean']) < 1.96 * output['deviation']).mean()


def make(num_steps):
  return make_learner(
    Model(init, apply),
    InnerConfig(num_steps=num_steps, encoder_lr=0.03),
    loss_fn=surprise,
    metric_fns={'covered': covered},
  )


def main(steps=5000, num_tasks=1000):
  learner, tx = make(num_steps=3), optax.adam(1e-3)
  run = make_train_step(
    learner,
    tx,
    lambda key, _: place(key),
    key=jax.random.key(1),
    meta_batch_size=16,
    max_steps=steps,
  )
  state, _ = run(init_state(learner, tx, jax.random.key(0)), (), steps)

  tests = jax.vmap(place)(jax.random.split(jax.random.key(-1), num_tasks))
  target = tests.query.targets
  anything = {'mean': target.mean(), 'deviation': target.std()}
  result = {'one distribution for all': float(surprise(anything, target))}
  for k in (0, 3):
    loss = jax.vmap(lambda task, k=k: make(k).loss(state.params, {}, task))
    _, (_, metrics) = jax.jit(loss)(tests)
    result[f'after {k} steps'] = float(metrics['loss'].mean())
  for name, value in result.items():
    print(f'{name:24} surprise {value:5.2f} nats')
  print(f'claimed to be 95 % sure, right in {metrics["covered"].mean():.1%}')
  return result


if __name__ == '__main__':
  main()
