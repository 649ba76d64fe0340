"""Meta-trains in float64 as one of several processes; see test_multiprocess.py.

python tests/float64_process.py ADDRESS NUM_PROCESSES PROCESS_ID FILE
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maml_jax import train_step
from maml_jax.learner import Batch, Episode, InnerConfig, make_learner
from maml_jax.models import make_model
from maml_jax.sharding import TaskSharding, make_mesh
from maml_jax.utils import distributed

WAYS, SHOTS, QUERIES, SIDE = 3, 2, 4, 16
STEPS, TASKS = 3, 8


def sample_episode(key, shared):
  """Draws a task of one noisy pattern per class."""
  del shared
  pattern_key, *keys = jax.random.split(key, 3)
  pattern = jax.random.normal(pattern_key, (WAYS, SIDE, SIDE, 3), jnp.float64)

  def batch(key, count):
    labels = jnp.repeat(jnp.arange(WAYS), count)
    noise = jax.random.normal(key, (len(labels), SIDE, SIDE, 3), jnp.float64)
    return Batch(pattern[labels] + noise, labels)

  return Episode(batch(keys[0], SHOTS), batch(keys[1], QUERIES))


def main(address: str, num_processes: str, process_id: str, file: str) -> None:
  """Runs three meta-iterations; process 0 writes state and metrics."""
  jax.config.update('jax_enable_x64', True)
  if num_processes != '1':
    distributed.initialize(address, int(num_processes), int(process_id))
  distributed.connect_devices(jax.devices())
  sharding = TaskSharding(make_mesh(), 1)
  model = make_model('convnet4', WAYS, (SIDE, SIDE, 3), norm='global', width=4)
  inner = InnerConfig(num_steps=2, encoder_lr=0.05, classifier_lr=0.1)
  learner, tx = make_learner(model, inner), optax.adam(1e-2)
  step = train_step.make_train_step(
    learner,
    tx,
    sample_episode,
    key=jax.random.key(1),
    meta_batch_size=TASKS,
    max_steps=STEPS,
    mesh=sharding.mesh,
    tasks_per_chunk=sharding.tasks_per_chunk,
  )

  def to_float64(x):
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(jnp.float64) if is_float else x

  state = train_step.init_state(learner, tx, jax.random.key(0))
  state = sharding.replicate(jax.tree.map(to_float64, state))
  state, metrics = step(state, (), STEPS)
  if distributed.is_main_process():
    arrays = enumerate(jax.tree.leaves(state))
    np.savez(file, **{f'state{i}': x for i, x in arrays}, **metrics)


if __name__ == '__main__':
  main(*sys.argv[1:])
