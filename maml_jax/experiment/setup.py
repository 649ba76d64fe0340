"""Builds what a config describes: phases, models, learners, devices.

A run has three phases, training, validation and evaluation, which differ in
their tasks and in how these are learned. A `Phase` describes one of them; the
functions here turn it into data, a learner and a transform.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from maml_jax import data
from maml_jax.config import flatten, learner_configs, require_enough_images
from maml_jax.data import images as image_lib
from maml_jax.data.augment import with_augmentation
from maml_jax.data.episodes import make_transform
from maml_jax.experiment.optimizers import make_optimizer, make_schedule
from maml_jax.learner import (
  Learner,
  OuterConfig,
  cross_entropy,
  make_learner,
  squared_error,
)
from maml_jax.models import CONVNET_WIDTHS, make_model
from maml_jax.platforms import default_tasks_per_chunk, merged_tasks_per_chunk
from maml_jax.sharding import (
  TaskSharding,
  choose_layout,
  first_devices,
  make_mesh,
  one_device_per_core,
)
from maml_jax.types import Array, Batch, Dataset, Episode, Model
from maml_jax.utils import distributed
from maml_jax.utils.compilation_cache import enable_compilation_cache
from maml_jax.utils.devices import require_devices
from maml_jax.utils.progress import track

__all__ = [
  'EVAL_STREAM',
  'INIT_STREAM',
  'TRAIN_STREAM',
  'Phase',
  'configure_jax',
  'eval_phase',
  'eval_sharding',
  'load_split',
  'make_outer_optimizer',
  'matmul_precision',
  'model_images',
  'num_eval_tasks',
  'phase_learner',
  'phase_model',
  'phase_transform',
  'rng_stream',
  'to_model_inputs',
  'train_phase',
  'train_sharding',
  'val_phase',
]

# The random number streams of a seed. EVAL_STREAM belongs to the first split,
# the following numbers to the others.
INIT_STREAM, TRAIN_STREAM, EVAL_STREAM = range(3)

# config.precision -> the dtype of images and activations in the network (None:
# that of the parameters), and JAX's precision of float32 matrix products.
PRECISIONS = {
  'float32': (None, 'float32'),
  'tf32': (None, 'tensorfloat32'),
  'bfloat16': ('bfloat16', 'bfloat16'),
}


def rng_stream(seed: int, number: int) -> jax.Array:
  """Returns the key of one of the random number streams of a seed."""
  return jax.random.fold_in(jax.random.key(seed), number)


class Phase(NamedTuple):
  """The tasks of a phase and how they are learned.

  Attributes:
    split: 'train', 'val' or 'test'.
    ways: W, classes per task.
    shots: S, support images per class.
    queries: Q, query images per class.
    num_steps: K, inner steps.
    norm: the batch norm mode, as in `config.model.norm`.
    meta_test: whether this is meta-test, see `models.make_model`.
    augment_support: augmentation of the support images.
    augment_query: augmentation of the query images.
    data: the data set.
    data_root: where it is, as `config.data.root`; None: that is the data set
      of the training.
  """

  split: str
  ways: int
  shots: int
  queries: int
  num_steps: int
  norm: str | tuple
  meta_test: bool
  augment_support: str
  augment_query: str = 'none'
  data: str = ''
  data_root: str | None = None

  @property
  def shape(self) -> dict[str, int]:
    """The arguments of the samplers in `data.episodes`."""
    return {'ways': self.ways, 'shots': self.shots, 'queries': self.queries}


def train_phase(config: ConfigDict) -> Phase:
  """Returns the phase of meta-training."""
  return Phase(
    split='train',
    **config.task,
    num_steps=config.inner.num_steps,
    norm=config.model.norm,
    meta_test=False,
    augment_support=config.data.augment_support,
    augment_query=config.data.augment_query,
    data=config.data.name,
  )


def val_phase(config: ConfigDict) -> Phase:
  """Returns the phase of validation."""
  return Phase(
    split='val',
    ways=config.val.ways,
    shots=config.val.shots,
    queries=config.val.queries,
    num_steps=config.val.num_steps,
    norm=config.model.norm,
    meta_test=True,
    augment_support=config.val.augment_support,
    data=config.data.name,
  )


def eval_phase(config: ConfigDict) -> Phase:
  """Returns the phase of evaluation, maybe on another data set."""
  trained, name = config.data, config.eval.data or config.data.name
  root = config.eval.data_root
  if not root and (name == trained.name or not _is_user_provided(trained.name)):
    root = trained.root
  is_other = (name, root) != (trained.name, trained.root)
  is_other = is_other and name not in data.REGRESSIONS  # they have no files
  return Phase(
    split=config.eval.split,
    ways=config.eval.ways,
    shots=config.eval.shots,
    queries=config.eval.queries,
    num_steps=config.eval.num_steps,
    norm=config.eval.norm,
    meta_test=True,
    augment_support=config.eval.augment_support,
    data=name,
    data_root=root if is_other else None,
  )


def _is_user_provided(name: str) -> bool:
  """Returns whether `data.root` is a directory of images for a data set."""
  return name in data.SPECS and data.SPECS[name].user_provided


def num_eval_tasks(config: ConfigDict) -> int:
  """Returns the number of tasks of an evaluation."""
  on_cpu = jax.default_backend() == 'cpu'
  return config.eval.num_tasks or (600 if on_cpu else 10_000)


def load_split(config: ConfigDict, phase: Phase) -> Dataset:
  """Loads the images of a phase on the host; see also `model_images`.

  Raises:
    UserError: they are not prepared, or a class has too few of them.
  """
  root = config.data.root if phase.data_root is None else phase.data_root
  dataset = data.load_dataset(phase.data, phase.split, root or None)
  name = f'{phase.data} {phase.split}'
  require_enough_images(name, dataset.size.tolist(), **phase.shape)
  return dataset


def model_images(
  config: ConfigDict, phase: Phase, images: np.ndarray | Array
) -> np.ndarray | Array:
  """Converts images of a phase to the size and channels of the model.

  Args:
    config: the data set of the training determines the model.
    phase: provides the data set of the images.
    images: uint8 [..., H, W, C], images of this data set.

  Returns:
    uint8 [..., H, W, C]: `images` themselves if they have this format already,
    otherwise see `data.images.to_array`.
  """
  spec, other = data.spec(config.data.name), data.spec(phase.data)
  is_inverted = spec.light_on_dark and not other.light_on_dark
  if spec.image_shape == other.image_shape and not is_inverted:
    return images
  shape = images.shape[:-3]
  images = images.reshape(-1, *images.shape[-3:])
  converted = np.empty((len(images), *spec.image_shape), np.uint8)
  bar = track(images, 'images', f'{phase.data}: convert {phase.split}')
  for i, image in enumerate(bar):
    converted[i] = image_lib.from_array(image, spec)
  return converted.reshape(*shape, *spec.image_shape)


def phase_model(config: ConfigDict, phase: Phase) -> Model:
  """Returns the model of a phase."""
  args = dict(config.model)
  args['norm'] = phase.norm
  if not args['width']:
    del args['width']
  is_regression = config.data.name in data.REGRESSIONS
  shape = (1,) if is_regression else data.spec(config.data.name).image_shape
  return make_model(
    args.pop('encoder'),
    phase.ways,
    shape,
    meta_test=phase.meta_test,
    dtype=PRECISIONS[config.precision][0],
    **args,
  )


def phase_learner(
  config: ConfigDict,
  phase: Phase,
  metric_fns: dict[str, Callable] | None = None,
  outer: OuterConfig | None = None,
  **inner,
) -> Learner:
  """Returns the model of a phase with its inner loop.

  Args:
    config: see `maml_jax.default_config`.
    phase: a phase of it.
    metric_fns: see `make_learner`; default accuracy. Ignored for regression,
      which reports only the loss.
    outer: the settings of the outer loss; default those of the config in
      training, unused otherwise.
    **inner: overrides of fields of `InnerConfig`.
  """
  inner_config, outer_config = learner_configs(flatten(config))
  if outer is None:
    outer = OuterConfig() if phase.meta_test else outer_config
  inner = {'num_steps': phase.num_steps, **inner}
  loss_fn = cross_entropy
  if config.data.name in data.REGRESSIONS:
    loss_fn, metric_fns = squared_error, {}
  return make_learner(
    phase_model(config, phase),
    dataclasses.replace(inner_config, **inner),
    outer,
    loss_fn=loss_fn,
    metric_fns=metric_fns,
  )


def phase_transform(config: ConfigDict, phase: Phase) -> Callable:
  """Returns the transform from uint8 images to what the model takes.

  See `data.episodes.sample_episode`.
  """
  spec = data.spec(config.data.name)
  is_normalized = config.data.normalize
  return with_augmentation(
    make_transform(spec.mean, spec.std) if is_normalized else make_transform(),
    support=phase.augment_support,
    query=phase.augment_query,
  )


def to_model_inputs(config: ConfigDict, images: np.ndarray | Array) -> Array:
  """Converts uint8 [N, H, W, C] to the float32 inputs of the model."""
  batch = Batch(jnp.asarray(images), ())
  transform = phase_transform(config, eval_phase(config))
  return transform(jax.random.key(0), Episode(batch, batch)).query.inputs


def make_outer_optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """Returns the outer optimizer, including its learning rate schedule."""
  outer, milestones = config.outer, config.outer.milestones
  if outer.schedule == 'cosine' and not milestones:
    milestones = (config.train.num_epochs,)
  schedule = make_schedule(
    outer.lr,
    schedule=outer.schedule,
    milestones=milestones,
    gamma=outer.gamma,
    warmup_epochs=outer.warmup_epochs,
    steps_per_epoch=config.train.steps_per_epoch,
  )
  return make_optimizer(
    outer.optimizer,
    schedule,
    momentum=outer.momentum,
    weight_decay=outer.weight_decay,
    clip_value=None if math.isinf(outer.clip_value) else outer.clip_value,
    lr_scale=outer.lr_scale,
  )


def matmul_precision(config: ConfigDict) -> AbstractContextManager:
  """Returns a context with the matrix precision of `config.precision`."""
  return jax.default_matmul_precision(PRECISIONS[config.precision][1])


def eval_sharding(config: ConfigDict) -> TaskSharding:
  """Returns the sharding of an evaluation, over all devices."""
  distributed.connect_devices(jax.devices())
  mesh = make_mesh()
  return TaskSharding(mesh, _tasks_per_chunk(config, mesh))


def train_sharding(
  config: ConfigDict, *, split_queries: bool, devices: Sequence | None = None
) -> TaskSharding:
  """Returns the sharding of training, over as many devices as possible.

  Args:
    config: with `train.meta_batch_size` and `train.tasks_per_chunk`.
    split_queries: allow several devices per task, each with a part of its query
      set, if there are enough devices.
    devices: the devices of this process, if it is the only one; default all
      devices of all processes.

  Raises:
    UserError: the tasks do not divide evenly over the processes or chunks.
  """
  queries = config.task.ways * config.task.queries if split_queries else 0
  layout = choose_layout(
    config.train.meta_batch_size,
    len(devices or jax.devices()),
    config.train.tasks_per_chunk or None,
    processes=jax.process_count(),
    queries=queries,
  )
  if devices:
    devices = devices[: layout.devices]
  else:
    devices = first_devices(layout.devices)
    distributed.connect_devices(devices)
  mesh = make_mesh(devices)
  size = _tasks_per_chunk(config, mesh)
  merged = _merged_tasks_per_chunk(config, mesh, layout)
  return TaskSharding(
    mesh, max(size, merged) if size else None, layout.query_splits, merged > 1
  )


def _tasks_per_chunk(config, mesh) -> int | None:
  return config.train.tasks_per_chunk or default_tasks_per_chunk(mesh)


def _merged_tasks_per_chunk(config, mesh, layout) -> int:
  """Returns how many tasks to process with merged channels; 1 for none."""
  model = config.model
  if model.encoder not in CONVNET_WIDTHS or model.context_size:
    return 1
  width = model.width or CONVNET_WIDTHS[model.encoder]
  num_tasks = config.train.meta_batch_size * layout.query_splits
  if size := config.train.tasks_per_chunk:
    return size if merged_tasks_per_chunk(mesh, width, size) == size else 1
  # Merged tasks need up to three times the memory of single ones.
  if config.precision == 'float32':
    return 1
  return merged_tasks_per_chunk(mesh, width, num_tasks // layout.devices)


def configure_jax(config: ConfigDict) -> None:
  """Configures devices, processes and the compilation cache for a run.

  Called by the command line, before JAX is used for the first time. Each CPU
  core becomes a device, compiled programs are cached on disk, and with several
  processes only the main one prints.

  Raises:
    UserError: there is no device, or the processes are not connected.
  """
  one_device_per_core(
    config.train.meta_batch_size, config.train.tasks_per_chunk or 1
  )
  enable_compilation_cache()
  require_devices()
  distributed.require_initialized()
