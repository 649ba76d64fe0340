"""Meta-learns a density model with dict inputs, dict outputs and its own loss.

    python examples/sensors.py

It shows that `maml_jax.learner` does not depend on images and classes. Eight
sensors stand in a row, and some of their values are missing. A task is a
location; the target is a noisy weighted sum of all values, including missing
ones, with weights that decrease with the distance from the location. The model
adapts to 16 readings.

Inputs are a dict of values and a mask. Outputs are a dict of mean and standard
deviation of a normal distribution. The loss is the negative log likelihood, and
an additional metric is the coverage of 95 % intervals.

It prints the test loss, in nats, of a single distribution for all tasks, and of
the model after 0 and 3 inner steps, and the coverage after 3:

    one distribution for all  loss BASELINE nats
    after 0 steps             loss BEFORE nats
    after 3 steps             loss AFTER nats
    95 % intervals cover COVERAGE of the targets

It takes less than a minute on one CPU core.
"""

import jax
import jax.numpy as jnp
import optax

from maml_jax.learner import Batch, Episode, InnerConfig, Model, make_learner
from maml_jax.train_step import init_state, make_train_step

SENSORS, WIDTH, READINGS, NOISE = 8, 64, 16, 0.1


def sample_episode(key):
  """Samples a location, and a support and a query set of readings."""
  location_key, value_key, mask_key, noise_key = jax.random.split(key, 4)
  location = jax.random.uniform(location_key, maxval=SENSORS - 1)
  weights = jnp.exp(-(jnp.square(jnp.arange(SENSORS) - location)) / 2)
  values = jax.random.normal(value_key, (2, READINGS, SENSORS))
  mask = jax.random.bernoulli(mask_key, 0.8, values.shape)
  noise = NOISE * jax.random.normal(noise_key, values.shape[:2])
  inputs = {'values': jnp.where(mask, values, 0.0), 'mask': mask}
  batches = Batch(inputs, values @ weights + noise)
  support, query = (jax.tree.map(lambda x, i=i: x[i], batches) for i in (0, 1))
  return Episode(support, query)


def init(key):
  """Returns random parameters; there are no statistics."""
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
  """Returns means and standard deviations, [N] each."""
  x = jnp.concatenate([inputs['values'], inputs['mask']], axis=-1)
  for i in range(3):
    x = x @ params[f'layer{i}']['w'] + params[f'layer{i}']['b']
    x = jax.nn.relu(x) if i < 2 else x
  return {'mean': x[:, 0], 'std': 0.05 + jax.nn.softplus(x[:, 1])}, stats


def negative_log_likelihood(outputs, targets):
  """Returns the mean negative log likelihood in nats."""
  log_density = jax.scipy.stats.norm.logpdf(
    targets, outputs['mean'], outputs['std']
  )
  return -log_density.mean()


def coverage(outputs, targets):
  """Returns the share of targets within the predicted 95 % interval."""
  return (abs(targets - outputs['mean']) < 1.96 * outputs['std']).mean()


def build_learner(num_steps):
  """Returns the learner with a given number of inner steps."""
  return make_learner(
    Model(init, apply),
    InnerConfig(num_steps=num_steps, encoder_lr=0.03),
    loss_fn=negative_log_likelihood,
    metric_fns={'coverage': coverage},
  )


def evaluate(state, episodes, num_steps):
  """Returns the mean metrics over tasks after some inner steps."""
  learner = build_learner(num_steps)
  loss = jax.vmap(lambda e: learner.loss(state.params, state.stats, e))
  _, (_, metrics) = jax.jit(loss)(episodes)
  return jax.tree.map(jnp.mean, metrics)


def main(steps=5000, num_tasks=1000):
  """Trains and evaluates; returns the losses."""
  learner, tx = build_learner(num_steps=3), optax.adam(1e-3)
  train_step = make_train_step(
    learner,
    tx,
    lambda key, shared: sample_episode(key),
    key=jax.random.key(1),
    meta_batch_size=16,
    max_steps=steps,
  )
  state = init_state(learner, tx, jax.random.key(0))
  state, _ = train_step(state, (), steps)

  keys = jax.random.split(jax.random.key(-1), num_tasks)
  episodes = jax.vmap(sample_episode)(keys)
  targets = episodes.query.targets
  constant = {'mean': targets.mean(), 'std': targets.std()}
  before = evaluate(state, episodes, num_steps=0)
  after = evaluate(state, episodes, num_steps=3)
  losses = {
    'one distribution for all': negative_log_likelihood(constant, targets),
    'after 0 steps': before['loss'],
    'after 3 steps': after['loss'],
  }
  losses = {name: float(loss) for name, loss in losses.items()}
  for name, loss in losses.items():
    print(f'{name:24}  loss {loss:5.2f} nats')
  print(f'95 % intervals cover {after["coverage"]:.1%} of the targets')
  return losses


if __name__ == '__main__':
  main()
