"""The workloads as maml_jax programs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks.workload import (
  BATCH,
  CLASSES,
  PARTS,
  Workload,
  random_episodes,
  random_images,
)
from maml_jax import config as config_lib
from maml_jax import ops, platforms
from maml_jax.data.episodes import sample_episode
from maml_jax.experiment import setup
from maml_jax.experiment.optimizers import make_optimizer
from maml_jax.experiment.pretraining import pretraining_learner
from maml_jax.experiment.setup import PRECISIONS
from maml_jax.learner import (
  Batch,
  Episode,
  InnerConfig,
  Learner,
  Model,
  OuterConfig,
  make_learner,
  meta_gradient,
)
from maml_jax.models import make_model
from maml_jax.sharding import make_mesh, map_tasks, one_device_per_core
from maml_jax.train_step import init_state, make_train_step
from maml_jax.types import Dataset

MAX_STEPS = 200  # maximum number of meta-iterations per call of a train step


def workload_learner(work: Workload) -> Learner:
  """Returns the learner of a workload."""
  if work.encoder == 'tiny':
    model = tiny_model(work.ways)
  else:
    model = make_model(
      work.encoder,
      work.ways,
      (work.side, work.side, 3),
      norm='episodic' if work.inductive else 'batch',
      dtype=activation_dtype(),
    )
  gradient = 'first_order' if work.first_order else 'exact'
  return make_learner(model, inner_config(work), OuterConfig(gradient=gradient))


def inner_config(work: Workload) -> InnerConfig:
  """Returns the inner loop settings of a workload."""
  if work.inductive:
    args = {'momentum': 0.9, 'weight_decay': 5e-4, 'head': 'zero'}
  else:
    args = {'frozen': ('bn',)}
  return InnerConfig(
    num_steps=work.num_steps,
    remat=work.remat,
    mixed_mode=work.mixed_mode,
    **args,
  )


def activation_dtype() -> str | None:
  """Returns the dtype that belongs to JAX's current matrix precision."""
  dtypes = {precision: dtype for dtype, precision in PRECISIONS.values()}
  return dtypes[jax.config.jax_default_matmul_precision or 'float32']


def tiny_model(num_ways: int) -> Model:
  """Returns one convolution and a linear head, which compile quickly."""

  def init(key):
    encoder_key, classifier_key = jax.random.split(key)
    kernel = jax.random.normal(encoder_key, (3, 3, 3, 4)) / 27**0.5
    weight = jax.random.normal(classifier_key, (4, num_ways)) / 2
    return {
      'encoder': {'conv': kernel, 'bn': jnp.zeros((1, 1, 1, 4))},
      'classifier': {'weight': weight},
    }, {}

  def apply(params, stats, images, *, train):
    del train
    encoder = params['encoder']
    x = jax.nn.relu(ops.conv(images, encoder['conv']) + encoder['bn'])
    return x.mean((1, 2)) @ params['classifier']['weight'], stats

  return Model(init, apply)


def workload_optimizer(work: Workload) -> optax.GradientTransformation:
  """Returns the outer optimizer of a workload."""
  if work.inductive:
    return make_optimizer('sgd', 0.01, weight_decay=5e-4, clip_value=10.0)
  return make_optimizer('adam', 1e-3, clip_value=10.0)


def fitting_mesh(num_tasks: int):
  """Returns a mesh of as many devices as the tasks divide evenly over."""
  devices = jax.devices()
  tasks_per_chunk = platforms.default_tasks_per_chunk(make_mesh()) or 1
  counts = [
    n
    for n in range(1, len(devices) + 1)
    if num_tasks % (n * tasks_per_chunk) == 0
  ]
  return make_mesh(devices[: max(counts, default=1)])


def make_program(work: Workload, mesh=None):
  """Returns one meta-iteration as a traceable function, and its arguments."""
  learner, tx = workload_learner(work), workload_optimizer(work)
  params, stats = learner.init(jax.random.key(0))
  episodes = Episode(
    *(Batch(*map(jnp.asarray, batch)) for batch in random_episodes(work))
  )
  tasks_per_chunk = platforms.default_tasks_per_chunk(mesh or make_mesh())

  def train(params, opt_state, episodes):
    grads, *_ = meta_gradient(
      learner,
      params,
      stats,
      episodes,
      mesh=mesh,
      tasks_per_chunk=tasks_per_chunk,
    )
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  def evaluate(params, opt_state, episodes):
    def one_task(params, episode):
      return learner.loss(params, stats, episode)[1][1]

    run = map_tasks(one_task, mesh, tasks_per_chunk)
    return run(params, episodes), opt_state

  fn = evaluate if work.evaluation else train
  return fn, (params, tx.init(params), episodes)


def compile_program(work: Workload, mesh=None):
  """Returns the compiled `make_program`, and its arguments."""
  fn, args = make_program(work, mesh)
  return jax.jit(fn).lower(*args).compile(), args


def make_iteration(work: Workload, precision: str = 'float32'):
  """Returns a function that runs one meta-iteration as `main.py` does."""
  one_device_per_core(work.tasks)
  with jax.default_matmul_precision(PRECISIONS[precision][1]):
    run, args = compile_program(work, fitting_mesh(work.tasks))
  return lambda: jax.block_until_ready(run(*args))


def make_sampler(work: Workload, transform):
  """Returns `sample_episode(key, dataset)` for `make_train_step`."""
  return partial(
    sample_episode,
    ways=work.ways,
    shots=work.shots,
    queries=work.queries,
    transform=transform,
  )


def workload_train_step(work: Workload, sample_episode, mesh):
  """Returns the train step of `main.py`, and its initial state."""
  learner, tx = workload_learner(work), workload_optimizer(work)
  step = make_train_step(
    learner,
    tx,
    sample_episode,
    key=jax.random.key(1),
    meta_batch_size=work.tasks,
    max_steps=MAX_STEPS,
    mesh=mesh,
    tasks_per_chunk=platforms.default_tasks_per_chunk(mesh),
  )
  return step, jax.jit(partial(init_state, learner, tx))(jax.random.key(0))


def random_dataset(
  work: Workload, mesh, *, classes: int, per_class: int
) -> Dataset:
  """Returns random images, replicated over the devices of a mesh."""
  total = classes * per_class
  dataset = Dataset(
    np.random.default_rng(0).integers(
      256, size=(total, work.side, work.side, 3), dtype=np.uint8
    ),
    np.arange(total, dtype=np.int32).reshape(classes, per_class),
    np.full(classes, per_class, np.int32),
  )
  return replicate(dataset, mesh)


def replicate(tree, mesh):
  """Replicates arrays over the devices of a mesh."""
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def make_pretraining_iteration(precision: str):
  """Returns a function that pre-trains on one batch, as `main.py` does."""
  one_device_per_core(PARTS)
  config = config_lib.load_preset('mini_pretrain')
  config.precision = precision
  learner = pretraining_learner(config, CLASSES)
  tx, mesh = setup.make_outer_optimizer(config), fitting_mesh(PARTS)
  parts = jax.tree.map(
    lambda x: x.reshape(PARTS, BATCH // PARTS, *x.shape[1:]), random_images()
  )
  images = replicate(parts, mesh)

  def sample_episode(key, images):
    part = jax.random.randint(key, (), 0, PARTS)
    return Episode((), Batch(*jax.tree.map(lambda x: x[part], images)))

  step = make_train_step(
    learner,
    tx,
    sample_episode,
    key=jax.random.key(1),
    meta_batch_size=PARTS,
    max_steps=1,
    mesh=mesh,
    tasks_per_chunk=platforms.default_tasks_per_chunk(mesh),
  )
  state = replicate(init_state(learner, tx, jax.random.key(0)), mesh)
  with setup.matmul_precision(config):
    step = step.lower(state, images, 1).compile()

  def run():
    nonlocal state
    state, metrics = step(state, images, 1)
    jax.block_until_ready((state, metrics))

  return run
