"""A timed iteration of maml_jax."""

import jax
import jax.numpy as jnp
import optax

from benchmarks.workload import Workload, arrays
from maml_jax import ops
from maml_jax.learner import (
  Batch,
  Episode,
  InnerConfig,
  make_learner,
  meta_gradient,
)
from maml_jax.models import make_model
from maml_jax.optim import make_optimizer
from maml_jax.parallel import make_mesh, mean_over_tasks, use_cores


def compiled(work: Workload, remat: bool = False, mesh=None):
  """The program of one iteration, on the devices of a mesh; its arguments."""
  model = make_model('convnet4', work.ways, (work.side, work.side, 3))
  inner = InnerConfig(
      num_steps=work.num_steps,
      first_order=work.first_order,
      frozen=('bn',),
      remat=remat,
  )
  learner = make_learner(model, inner)
  tx = make_optimizer('adam', 1e-3, clip=10.0)
  params, stats = learner.init(jax.random.key(0))
  episodes = Episode(*(Batch(*map(jnp.asarray, b)) for b in arrays(work)))
  chunk = ops.default_chunk()

  def train(params, opt_state, episodes):
    grads, *_ = meta_gradient(
        learner, params, stats, episodes, mesh=mesh, chunk=chunk
    )
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  def evaluate(params, opt_state, episodes):
    def one_task(params, episode):
      return (), learner.loss(params, stats, episode)[1][1]

    run = mean_over_tasks(one_task, mesh, chunk)
    return run(params, episodes), opt_state

  args = params, tx.init(params), episodes
  run = jax.jit(evaluate if work.evaluation else train)
  return run.lower(*args).compile(), args


def iteration(work: Workload):
  """A function that runs one iteration as `main.py` does, and waits for it."""
  use_cores(work.tasks)
  run, args = compiled(work, mesh=make_mesh())
  return lambda: jax.block_until_ready(run(*args))
