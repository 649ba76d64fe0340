"""From a config to the objects that it describes.

A run has three phases that differ in what their tasks look like and how they
are learned: training, validation and evaluation. A `Phase` says so; the
functions here turn it into data, a learner and a transform.
"""

import math
import os
import pathlib
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from maml_jax import data
from maml_jax.config import check_task
from maml_jax.data.augment import augmented
from maml_jax.data.episodes import make_transform
from maml_jax.inner import InnerConfig
from maml_jax.learner import Learner, make_learner, squared_error
from maml_jax.models import make_model
from maml_jax.optim import make_optimizer, make_schedule
from maml_jax.parallel import AXIS, make_mesh, use_cores
from maml_jax.types import Dataset

# What the images of a split may take of a device's memory.
SHARE_FOR_IMAGES = 1 / 3

# The random streams of a seed; FIXED is that of the first split, and so on.
INITIAL, TRAINING, FIXED = range(3)

# config.precision -> the type of images and activations in the network (None:
# that of the parameters), and JAX's word for products of float32 numbers.
PRECISIONS = {
    'float32': (None, 'float32'),
    'tf32': (None, 'tensorfloat32'),
    'bfloat16': ('bfloat16', 'bfloat16'),
}


def stream(seed: int, number: int) -> jax.Array:
  """The key of one of the random streams of a seed."""
  return jax.random.fold_in(jax.random.key(seed), number)


class Phase(NamedTuple):
  """What the tasks of a phase look like, and how they are learned."""

  split: str
  ways: int
  shots: int
  queries: int
  num_steps: int  # of the inner loop
  norm: str | tuple  # as in config.model.norm
  meta_test: bool
  augment_support: str
  augment_query: str = 'none'

  @property
  def shape(self) -> dict[str, int]:
    """The arguments of the samplers in `data.episodes`."""
    return {'ways': self.ways, 'shots': self.shots, 'queries': self.queries}


def train_phase(config) -> Phase:
  return Phase(
      split='train',
      **config.task,
      num_steps=config.inner.num_steps,
      norm=config.model.norm,
      meta_test=False,
      augment_support=config.data.augment_support,
      augment_query=config.data.augment_query,
  )


def val_phase(config) -> Phase:
  return Phase(
      split='val',
      ways=config.val.ways,
      shots=config.val.shots,
      queries=config.val.queries,
      num_steps=config.val.num_steps,
      norm=config.model.norm,
      meta_test=True,
      augment_support=config.val.augment_support,
  )


def eval_phase(config) -> Phase:
  return Phase(
      split=config.eval.split,
      ways=config.eval.ways,
      shots=config.eval.shots,
      queries=config.eval.queries,
      num_steps=config.eval.num_steps,
      norm=config.eval.norm,
      meta_test=True,
      augment_support=config.eval.augment_support,
  )


def load_split(config, phase: Phase) -> Dataset:
  """The images of a phase, on the host, checked to be enough for its tasks.

  Raises:
    UserError: they are not prepared, or a class has too few of them.
  """
  dataset = data.load_dataset(
      config.data.name, phase.split, config.data.root or None
  )
  check_task(f'{config.data.name} {phase.split}', dataset.size, **phase.shape)
  return dataset


def phase_learner(config, phase: Phase) -> Learner:
  """The model of a phase with its inner loop."""
  args = dict(config.model)
  args['norm'] = phase.norm
  if not args['width']:
    del args['width']
  regression = config.data.name in data.FUNCTIONS
  shape = (1,) if regression else data.spec(config.data.name).image_shape
  model = make_model(
      args.pop('encoder'),
      phase.ways,
      shape,
      meta_test=phase.meta_test,
      dtype=PRECISIONS[config.precision][0],
      **args,
  )
  inner = dict(config.inner) | {'num_steps': phase.num_steps}
  loss = {'loss_fn': squared_error, 'metric_fns': {}} if regression else {}
  return make_learner(model, InnerConfig(**inner), **loss)


def phase_transform(config, phase: Phase):
  """uint8 images of a task -> what the model takes; see `sample_episode`."""
  spec = data.spec(config.data.name)
  normalize = config.data.normalize
  return augmented(
      make_transform(spec.mean, spec.std) if normalize else make_transform(),
      support=phase.augment_support,
      query=phase.augment_query,
  )


def outer_optimizer(config):
  """The optimiser of the outer loop, its schedule inside."""
  outer = config.outer
  schedule = make_schedule(
      outer.lr,
      schedule=outer.schedule,
      milestones=outer.milestones,
      gamma=outer.gamma,
      warmup_epochs=outer.warmup_epochs,
      steps_per_epoch=config.train.steps_per_epoch,
  )
  return make_optimizer(
      outer.optimizer,
      schedule,
      momentum=outer.momentum,
      weight_decay=outer.weight_decay,
      clip=None if math.isinf(outer.clip) else outer.clip,
  )


def product_precision(config):
  """A context in which products are as exact as `config.precision` says."""
  return jax.default_matmul_precision(PRECISIONS[config.precision][1])


class Machine(NamedTuple):
  """The devices, and how tasks are laid over them."""

  mesh: jax.sharding.Mesh | None
  chunk: int | None  # tasks at once on a device; None: all

  def put(self, tree):
    """Places arrays on every device, whole."""
    return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

  def spread(self, tree, axis: int):
    """Places arrays whose axis `axis` is that of the tasks."""
    spec = PartitionSpec(*[None] * axis, AXIS)
    return jax.device_put(tree, NamedSharding(self.mesh, spec))

  def holds(self, num_bytes: int) -> bool:
    """Whether every device has room for so much beside what it computes."""
    device = self.mesh.local_devices[0]
    memory = (device.memory_stats() or {}).get('bytes_limit')
    if memory is None:  # CPU devices share the memory of the host
      memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
      memory //= len(self.mesh.local_devices)
    return num_bytes <= SHARE_FOR_IMAGES * memory


def machine(config) -> Machine:
  """All devices there are."""
  default = 1 if jax.default_backend() == 'cpu' else None
  return Machine(make_mesh(), config.train.chunk or default)


def prepare_jax(config) -> None:
  """What must be settled before JAX is used for the first time.

  Compiled programs are kept for the next run: restarts take seconds. They lie
  in $MAML_JAX_CACHE, by default ~/.cache/maml_jax/xla; a directory that JAX
  itself was told of goes first. A CPU is used as one device per core.
  """
  use_cores(config.train.num_tasks, config.train.chunk or 1)
  if jax.config.jax_compilation_cache_dir is None:
    folder = os.environ.get('MAML_JAX_CACHE') or '~/.cache/maml_jax/xla'
    folder = str(pathlib.Path(folder).expanduser())
    jax.config.update('jax_compilation_cache_dir', folder)
