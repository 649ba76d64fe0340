"""From a config to the objects that it describes.

A run has three phases that differ in what their tasks look like and how they
are learned: training, validation and evaluation. A `Phase` says so; the
functions here turn it into data, a learner and a transform.
"""

import contextlib
import math
import os
import pathlib
import time
import zlib
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from maml_jax import data
from maml_jax.utils import distributed
from maml_jax.config import require_enough_images
from maml_jax.data.augment import with_augmentation
from maml_jax.data.episodes import make_transform
from maml_jax.inner_loop import InnerConfig
from maml_jax.learner import Learner, cross_entropy, make_learner, squared_error
from maml_jax.models import make_model
from maml_jax.experiment.optimizers import make_optimizer, make_schedule
from maml_jax.sharding import TASK_AXIS, choose_layout, first_devices, make_mesh, one_device_per_core
from maml_jax.types import Dataset, Model

# What the images of a split may take of a device's memory.
MAX_IMAGE_MEMORY_SHARE = 1 / 3

# The random streams of a seed; FIXED is that of the first split, and so on.
INIT_STREAM, TRAIN_STREAM, EVAL_STREAM = range(3)

ZSTANDARD_MAGIC = b'\x28\xb5\x2f\xfd'  # how files begin that zlib did not make

# config.precision -> the type of images and activations in the network (None:
# that of the parameters), and JAX's word for products of float32 numbers.
PRECISIONS = {
    'float32': (None, 'float32'),
    'tf32': (None, 'tensorfloat32'),
    'bfloat16': ('bfloat16', 'bfloat16'),
}


def rng_stream(seed: int, number: int) -> jax.Array:
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


def num_eval_tasks(config) -> int:
  """How many tasks an evaluation has, as many as the hardware suggests."""
  on_cpu = jax.default_backend() == 'cpu'
  return config.eval.num_tasks or (600 if on_cpu else 10_000)


def load_split(config, phase: Phase) -> Dataset:
  """The images of a phase, on the host, checked to be enough for its tasks.

  Raises:
    UserError: they are not prepared, or a class has too few of them.
  """
  dataset = data.load_dataset(
      config.data.name, phase.split, config.data.root or None
  )
  require_enough_images(f'{config.data.name} {phase.split}', dataset.size, **phase.shape)
  return dataset


def phase_model(config, phase: Phase, *, head: bool = True) -> Model:
  """The model of a phase; without its head, one that gives features [N, D]."""
  args = dict(config.model)
  args['norm'] = phase.norm
  if not args['width']:
    del args['width']
  regression = config.data.name in data.REGRESSIONS
  shape = (1,) if regression else data.spec(config.data.name).image_shape
  return make_model(
      args.pop('encoder'),
      phase.ways if head else None,
      shape,
      meta_test=phase.meta_test,
      dtype=PRECISIONS[config.precision][0],
      **args,
  )


def phase_learner(config, phase: Phase, metric_fns=None, **inner) -> Learner:
  """The model of a phase with its inner loop.

  Args:
    config: see `configs/default.py`.
    phase: one of it.
    metric_fns: see `make_learner`; by default accuracy, or none in regression.
    **inner: fields of `InnerConfig` to be other than in the config.
  """
  inner = {**config.inner, 'num_steps': phase.num_steps, **inner}
  loss_fn = cross_entropy
  if config.data.name in data.REGRESSIONS:
    loss_fn, metric_fns = squared_error, {}
  return make_learner(
      phase_model(config, phase),
      InnerConfig(**inner),
      loss_fn=loss_fn,
      metric_fns=metric_fns,
  )


def phase_transform(config, phase: Phase):
  """uint8 images of a task -> what the model takes; see `sample_episode`."""
  spec = data.spec(config.data.name)
  normalize = config.data.normalize
  return with_augmentation(
      make_transform(spec.mean, spec.std) if normalize else make_transform(),
      support=phase.augment_support,
      query=phase.augment_query,
  )


def make_outer_optimizer(config):
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


def matmul_precision(config):
  """A context in which products are as exact as `config.precision` says."""
  return jax.default_matmul_precision(PRECISIONS[config.precision][1])


class TaskSharding(NamedTuple):
  """The devices, and how tasks are laid over them.

  With several processes, each places on its own devices what they are to hold.
  """

  mesh: jax.sharding.Mesh | None
  chunk: int | None  # tasks at once on a device; None: all
  parts: int = 1  # of a task's query set, each on a device of its own

  def put(self, tree):
    """Places arrays on every device, whole; all processes have the same."""
    sharding = NamedSharding(self.mesh, PartitionSpec())
    if not distributed.is_multiprocess():
      return jax.device_put(tree, sharding)

    def place(x):
      x = np.asarray(x)
      return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])

    return jax.tree.map(place, tree)

  def rows(self, num_tasks: int) -> np.ndarray:
    """Which of so many tasks the devices of this process take: [n] int."""
    every = np.arange(num_tasks)
    if self.mesh is None:
      return every
    sharding = NamedSharding(self.mesh, PartitionSpec(TASK_AXIS))
    own = sharding.addressable_devices_indices_map(every.shape).values()
    return np.unique(np.concatenate([every[at] for at in own]))

  def spread(self, tree, axis: int):
    """Places arrays whose axis `axis` is that of tasks: this process's `rows`.

    Returns:
      The arrays of all processes, each on its devices.
    """
    if self.mesh is None:
      return tree
    sharding = NamedSharding(self.mesh, PartitionSpec(*[None] * axis, TASK_AXIS))

    def place(x):
      shape = list(x.shape)
      shape[axis] *= jax.process_count()
      return jax.make_array_from_process_local_data(sharding, x, tuple(shape))

    return jax.tree.map(place, tree)

  def holds(self, num_bytes: int) -> bool:
    """Whether every device has room for so much beside what it computes."""
    device = self.mesh.local_devices[0]
    memory = (device.memory_stats() or {}).get('bytes_limit')
    if memory is None:  # CPU devices share the memory of the host
      memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
      memory //= len(self.mesh.local_devices)
    return num_bytes <= MAX_IMAGE_MEMORY_SHARE * memory


def eval_sharding(config) -> TaskSharding:
  """All devices there are, as evaluation uses them."""
  distributed.connect_devices(jax.devices())
  return TaskSharding(make_mesh(), _chunk(config))


def train_sharding(config, *, splits: bool) -> TaskSharding:
  """As many devices as the tasks of a meta-iteration can use.

  Args:
    config: with `train.num_tasks` and `train.chunk`.
    splits: where there are several devices for each task, they may share its
      query set out.

  Raises:
    UserError: the tasks do not divide over the processes or into chunks.
  """
  layout = choose_layout(
      config.train.num_tasks,
      jax.device_count(),
      config.train.chunk or None,
      processes=jax.process_count(),
      queries=config.task.ways * config.task.queries if splits else 0,
  )
  devices = first_devices(layout.devices)
  distributed.connect_devices(devices)
  return TaskSharding(make_mesh(devices), _chunk(config), layout.parts)


def _chunk(config) -> int | None:
  default = 1 if jax.default_backend() == 'cpu' else None
  return config.train.chunk or default


def configure_jax(config) -> None:
  """What must be settled before JAX is used for the first time.

  Compiled programs are kept for the next run. A CPU is used as one device per
  core. Of several processes the first alone speaks.
  """
  one_device_per_core(config.train.num_tasks, config.train.chunk or 1)
  enable_compilation_cache()
  distributed.require_initialized()


def enable_compilation_cache(least_seconds: float | None = None) -> None:
  """Keeps compiled programs for the next run: restarts take seconds.

  They lie in $MAML_JAX_CACHE, by default ~/.cache/maml_jax/xla; a directory
  that JAX itself was told of goes first.

  Args:
    least_seconds: leave out what is compiled faster; by default as JAX does.
  """
  if least_seconds is not None:
    name = 'jax_persistent_cache_min_compile_time_secs'
    jax.config.update(name, least_seconds)
  if jax.config.jax_compilation_cache_dir is None:
    folder = os.environ.get('MAML_JAX_CACHE') or '~/.cache/maml_jax/xla'
    folder = pathlib.Path(folder).expanduser()
    _drop_damaged(folder)
    jax.config.update('jax_compilation_cache_dir', str(folder))


def _drop_damaged(folder: pathlib.Path) -> None:
  """Removes compiled programs that were cut short, or changed since.

  JAX would pass over them with a warning, at every start anew. Each is looked
  at once.
  """
  stamp = folder / 'checked'
  with contextlib.suppress(OSError):  # it may be missing, or read-only
    checked = stamp.stat().st_mtime_ns if stamp.exists() else 0
    files = list(folder.glob('*-cache'))
    if not files:
      return
    now = time.time_ns()
    for file in files:
      if file.stat().st_mtime_ns >= checked:
        content = file.read_bytes()
        try:
          if not content.startswith(ZSTANDARD_MAGIC):
            zlib.decompress(content)
        except zlib.error:
          file.unlink()
    stamp.touch()
    os.utime(stamp, ns=(now, now))
