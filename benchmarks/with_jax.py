"""The programs of maml_jax that are timed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.workload import Workload, arrays
from maml_jax import ops, sharding
from maml_jax.data.episodes import sample_episode
from maml_jax.experiment.optimizers import make_optimizer
from maml_jax.experiment.setup import PRECISIONS
from maml_jax.learner import (
  Batch,
  Episode,
  InnerConfig,
  Model,
  make_learner,
  meta_gradient,
)
from maml_jax.models import make_model
from maml_jax.sharding import make_mesh, mean_over_tasks, one_device_per_core
from maml_jax.train import init_state, make_train_step
from maml_jax.types import Dataset

# Meta-iterations whose metrics a train step has room for.
MAX_STEPS = 200


def inner_config(work: Workload) -> InnerConfig:
  """The inner loop of a workload."""
  if work.inductive:
    args = {'momentum': 0.9, 'weight_decay': 5e-4, 'reset_classifier': True}
  else:
    args = {'frozen': ('bn',)}
  return InnerConfig(
    num_steps=work.num_steps,
    first_order=work.first_order,
    remat=work.remat,
    mixed_mode=work.mixed_mode,
    **args,
  )


def learner_of(work: Workload):
  """The learner of a workload."""
  if work.encoder == 'tiny':
    model = tiny_model(work.ways)
  else:
    model = make_model(
      work.encoder,
      work.ways,
      (work.side, work.side, 3),
      norm='episodic' if work.inductive else 'batch',
      dtype=activations(),
    )
  return make_learner(model, inner_config(work))


def activations() -> str | None:
  """The type that goes with the precision of products in force."""
  types = {word: dtype for dtype, word in PRECISIONS.values()}
  return types[jax.config.jax_default_matmul_precision or 'float32']


def tiny_model(num_ways: int) -> Model:
  """One convolution and a linear head, which compile in a moment."""

  def init(key):
    encoder_key, classifier_key = jax.random.split(key)
    kernel = jax.random.normal(encoder_key, (3, 3, 3, 4)) / 27**0.5
    weight = jax.random.normal(classifier_key, (4, num_ways)) / 2
    return {
      'encoder': {'conv': kernel, 'bn': jnp.zeros((1, 1, 1, 4))},
      'classifier': {'weight': weight},
    }, {}

  def apply(params, stats, image, *, train):
    del train
    encoder = params['encoder']
    x = jax.nn.relu(ops.conv(image, encoder['conv']) + encoder['bn'])
    return x.mean((1, 2)) @ params['classifier']['weight'], stats

  return Model(init, apply)


def optimizer_of(work: Workload):
  """The outer optimiser of a workload."""
  if work.inductive:
    return make_optimizer('sgd', 0.01, weight_decay=5e-4, clip_value=10.0)
  return make_optimizer('adam', 1e-3, clip_value=10.0)


def fitting_mesh(num_tasks: int):
  """A mesh of as many devices as the tasks divide over."""
  devices, chunk = jax.devices(), sharding.default_tasks_per_chunk() or 1
  fitting = [
    n for n in range(1, len(devices) + 1) if num_tasks % (n * chunk) == 0
  ]
  return make_mesh(devices[: max(fitting, default=1)])


def program(work: Workload, mesh=None):
  """One iteration as a function that can be traced, and its arguments."""
  learner, tx = learner_of(work), optimizer_of(work)
  params, stats = learner.init(jax.random.key(0))
  episodes = Episode(*(Batch(*map(jnp.asarray, b)) for b in arrays(work)))
  chunk = sharding.default_tasks_per_chunk()

  def train(params, opt_state, episodes):
    grads, *_ = meta_gradient(
      learner, params, stats, episodes, mesh=mesh, tasks_per_chunk=chunk
    )
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  def evaluate(params, opt_state, episodes):
    def one_task(params, episode):
      return (), learner.loss(params, stats, episode)[1][1]

    run = mean_over_tasks(one_task, mesh, chunk)
    return run(params, episodes), opt_state

  fn = evaluate if work.evaluation else train
  return fn, (params, tx.init(params), episodes)


def compiled(work: Workload, mesh=None):
  """The compiled `program`, and its arguments."""
  fn, args = program(work, mesh)
  return jax.jit(fn).lower(*args).compile(), args


def iteration(work: Workload, precision: str = 'float32'):
  """A function that runs one iteration as `main.py` does, and waits for it."""
  one_device_per_core(work.tasks)
  with jax.default_matmul_precision(PRECISIONS[precision][1]):
    run, args = compiled(work, fitting_mesh(work.tasks))
  return lambda: jax.block_until_ready(run(*args))


def sampler(work: Workload, transform):
  """`sample(key, dataset)`, as `make_train_step` takes it."""
  return partial(
    sample_episode,
    ways=work.ways,
    shots=work.shots,
    queries=work.queries,
    transform=transform,
  )


def train_step(work: Workload, sample, mesh):
  """The train step of `main.py`, and the state that it begins with."""
  learner, tx = learner_of(work), optimizer_of(work)
  step = make_train_step(
    learner,
    tx,
    sample,
    key=jax.random.key(1),
    meta_batch_size=work.tasks,
    max_steps=MAX_STEPS,
    mesh=mesh,
    tasks_per_chunk=sharding.default_tasks_per_chunk(),
  )
  return step, jax.jit(partial(init_state, learner, tx))(jax.random.key(0))


def synthetic(work: Workload, mesh, *, classes: int, per_class: int) -> Dataset:
  """Random images, whole on every device of a mesh."""
  total = classes * per_class
  dataset = Dataset(
    np.random.default_rng(0).integers(
      256, size=(total, work.side, work.side, 3), dtype=np.uint8
    ),
    np.arange(total, dtype=np.int32).reshape(classes, per_class),
    np.full(classes, per_class, np.int32),
  )
  return replicated(dataset, mesh)


def replicated(tree, mesh):
  """Arrays, whole on every device of a mesh."""
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
