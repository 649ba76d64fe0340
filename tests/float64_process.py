"""One of several processes that meta-train in float64; see test_multiprocess.py.

python tests/float64_process.py ADDRESS NUM_PROCESSES PROCESS_ID FILE
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from maml_jax import sharding, train
from maml_jax.learner import Batch, Episode, InnerConfig, make_learner
from maml_jax.models import make_model
from maml_jax.sharding import make_mesh
from maml_jax.utils import distributed

WAYS, SHOTS, QUERIES, SIDE = 3, 2, 4, 16
STEPS, TASKS = 3, 8


def sample(key, shared):
  """A task of noise around a pattern of each class."""
  del shared
  pattern_key, *keys = jax.random.split(key, 3)
  pattern = jax.random.normal(pattern_key, (WAYS, SIDE, SIDE, 3), jnp.float64)

  def batch(key, count):
    label = jnp.repeat(jnp.arange(WAYS), count)
    noise = jax.random.normal(key, (len(label), SIDE, SIDE, 3), jnp.float64)
    return Batch(pattern[label] + noise, label)

  return Episode(batch(keys[0], SHOTS), batch(keys[1], QUERIES))


def main(address: str, num_processes: str, process_id: str, file: str) -> None:
  jax.config.update('jax_enable_x64', True)
  if num_processes != '1':
    distributed.initialize(address, int(num_processes), int(process_id))
  distributed.connect_devices(jax.devices())
  machine = sharding.TaskSharding(make_mesh(), 1)
  model = make_model('convnet4', WAYS, (SIDE, SIDE, 3), norm='global', width=4)
  inner = InnerConfig(num_steps=2, encoder_lr=0.05, classifier_lr=0.1)
  learner, tx = make_learner(model, inner), optax.adam(1e-2)
  step = train.make_train_step(
    learner,
    tx,
    sample,
    key=jax.random.key(1),
    meta_batch_size=TASKS,
    max_steps=STEPS,
    mesh=machine.mesh,
    tasks_per_chunk=machine.tasks_per_chunk,
  )

  def widen(x):
    wide = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(jnp.float64) if wide else x

  state = train.init_state(learner, tx, jax.random.key(0))
  state = machine.replicate(jax.tree.map(widen, state))
  state, metrics = step(state, (), STEPS)
  if distributed.is_main_process():
    arrays = enumerate(jax.tree.leaves(state))
    np.savez(file, **{f'state{i}': x for i, x in arrays}, **metrics)


if __name__ == '__main__':
  main(*sys.argv[1:])
