"""The tasks of a phase, and where their images are stored.

Images are stored on the devices if they fit. Otherwise they stay on the host,
memory-mapped, and the images of each task are prefetched; the tasks are
bit-identical. Regression tasks need no images.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from maml_jax import data
from maml_jax.data.episodes import (
  draw_distinct_tasks,
  draw_task_positions,
  split_episode,
  take_episode,
  task_keys,
  transform_episode,
)
from maml_jax.data.image_storage import ImageStorage, image_storage
from maml_jax.experiment import setup
from maml_jax.experiment.setup import Phase
from maml_jax.platforms import mesh_platform
from maml_jax.sharding import TaskSharding
from maml_jax.types import Array, Batch, Dataset, Episode, PyTree

__all__ = [
  'EvalTasks',
  'Prefetcher',
  'TrainTasks',
  'choose_placement',
  'class_batches',
  'eval_task_indices',
  'eval_tasks',
  'task_classes',
  'train_tasks',
]


class TrainTasks(NamedTuple):
  """The tasks of meta-training.

  Attributes:
    shared: data that is replicated over the devices; () if there is none.
    sample_episode: `sample_episode(key, shared, *host_data) -> Episode`, called
      under jit.
    host_data: `host_data(step, task_ids) -> arrays [n, ...]`: what the host
      provides for these tasks of a meta-iteration, default all of them; None if
      `sample_episode` needs nothing more.
    placement: 'device', 'host' or, without images, ''.
  """

  shared: PyTree
  sample_episode: Callable
  host_data: Callable[..., tuple] | None
  placement: str


class EvalTasks(NamedTuple):
  """The fixed tasks of a validation or an evaluation.

  Attributes:
    shared: data that is replicated over the devices; () if there is none.
    build_episode: `build_episode(key, shared, *host_data) -> Episode`, called
      under jit.
    keys: [T], one for each task.
    host_data: `host_data(task_ids [n]) -> arrays [n, ...]`: what the host
      provides for these tasks.
  """

  shared: PyTree
  build_episode: Callable
  keys: Array
  host_data: Callable[[np.ndarray], tuple]


def train_tasks(
  config: ConfigDict, sharding: TaskSharding, dataset: Dataset | None = None
) -> TrainTasks:
  """Returns the tasks of meta-training.

  Args:
    config: see `maml_jax.default_config`.
    sharding: the devices.
    dataset: the images, on the host; default those of `config.data`.

  Raises:
    UserError: the data are not prepared, or a class has too few images.
  """
  phase = setup.train_phase(config)
  if config.data.name in data.REGRESSIONS:
    sample_regression = _regression_sampler(config, phase)
    return TrainTasks((), lambda key, _: sample_regression(key), None, '')
  if dataset is None:
    dataset = setup.load_split(config, phase)
  transform = setup.phase_transform(config, phase)

  def build(key, shared, images):
    del shared
    episode = split_episode(images, shots=phase.shots)
    return transform_episode(key, episode, transform)

  placement = choose_placement(config, sharding, dataset)
  if placement == 'device':
    storage = _storage(sharding, dataset)
    images = storage.pack(dataset.images)

    def sample(key, dataset):
      positions = draw_task_positions(key, dataset, **phase.shape)
      take = partial(storage.take, dataset.images)
      episode = take_episode(take, positions, shots=phase.shots)
      return transform_episode(key, episode, transform)

    shared = sharding.replicate(dataset._replace(images=images))
    return TrainTasks(shared, sample, None, placement)

  # Positions are drawn on the host, without the images.
  cpu = jax.local_devices(backend='cpu')[0]
  index, size = jax.device_put((dataset.index, dataset.size), cpu)
  rows = dataset._replace(images=(), index=index, size=size)
  draw = partial(draw_task_positions, dataset=rows, **phase.shape)
  gather = _image_gatherer(config, dataset.images, draw)
  return TrainTasks((), build, gather, placement)


def class_batches(
  config: ConfigDict, sharding: TaskSharding
) -> tuple[TrainTasks, int]:
  """Returns batches of training images of all classes, in place of tasks.

  Each is drawn independently and uniformly, with replacement, and has an empty
  support set.

  Returns:
    The batches, and the number of classes.

  Raises:
    UserError: the data are not prepared.
  """
  phase = setup.train_phase(config)
  dataset = setup.load_split(config, phase)
  transform = setup.phase_transform(config, phase)
  labels = _labels(dataset)

  def draw(key):
    size = (config.pretrain.batch_size,)
    return jax.random.randint(jax.random.split(key)[0], size, 0, len(labels))

  def batch(key, images, labels):
    batch = Batch(images, labels)
    episode = transform(jax.random.split(key)[1], Episode(batch, batch))
    return episode._replace(support=())

  def sample(key, shared):
    images, labels = shared
    rows = draw(key)
    return batch(key, storage.take(images, rows), labels[rows])

  def sample_with_images(key, labels, images):
    return batch(key, images, labels[draw(key)])

  placement = choose_placement(config, sharding, dataset)
  storage = _storage(sharding, dataset)
  if placement == 'device':
    shared = sharding.replicate((storage.pack(dataset.images), labels))
    tasks = TrainTasks(shared, sample, None, placement)
  else:
    gather = _image_gatherer(config, dataset.images, draw)
    shared = sharding.replicate(labels)
    tasks = TrainTasks(shared, sample_with_images, gather, placement)
  return tasks, len(dataset.size)


def _labels(dataset: Dataset) -> np.ndarray:
  """Returns the class of each image, [M] int32."""
  labels = np.zeros(len(dataset.images), np.int32)
  for c, (row, size) in enumerate(
    zip(dataset.index, dataset.size, strict=True)
  ):
    labels[row[:size]] = c
  return labels


def eval_tasks(
  config: ConfigDict, phase: Phase, num_tasks: int, sharding: TaskSharding
) -> EvalTasks:
  """Returns the first `num_tasks` fixed tasks of a phase.

  Raises:
    UserError: the data are not prepared, or there are too few images for such
      tasks or for so many distinct ones.
  """
  number = setup.EVAL_STREAM + data.SPLITS.index(phase.split)
  if config.data.name in data.REGRESSIONS:
    sample = _regression_sampler(config, phase)
    keys = jax.random.split(setup.rng_stream(0, number), num_tasks)
    return EvalTasks((), lambda key, _: sample(key), keys, lambda task_ids: ())
  dataset = setup.load_split(config, phase)
  positions, keys = eval_task_indices(dataset, phase, num_tasks)
  images = setup.model_images(config, phase, dataset.images)
  dataset = dataset._replace(images=images)
  transform = setup.phase_transform(config, phase)

  if choose_placement(config, sharding, dataset) == 'device':
    storage = _storage(sharding, dataset)

    def build(key, images, rows):
      take = partial(storage.take, images)
      return transform(key, take_episode(take, rows, shots=phase.shots))

    return EvalTasks(
      sharding.replicate(storage.pack(dataset.images)),
      build,
      keys,
      lambda task_ids: (positions[task_ids],),
    )
  return EvalTasks(
    (),
    lambda key, _, images: transform(
      key, split_episode(images, shots=phase.shots)
    ),
    keys,
    lambda task_ids: (dataset.images[positions[task_ids]],),
  )


def eval_task_indices(
  dataset: Dataset, phase: Phase, num_tasks: int
) -> tuple[np.ndarray, Array]:
  """Returns the fixed tasks of a phase as positions of images.

  They depend on the split and the shape of the tasks, not on a seed.

  Args:
    dataset: a `Dataset`; its images are not read.
    phase: provides split, ways, shots and queries.
    num_tasks: T; the first tasks do not depend on it.

  Returns:
    Positions [T, W, S + Q] int32, and one key per task for its transform, [T].

  Raises:
    UserError: there are not that many distinct tasks.
  """
  number = setup.EVAL_STREAM + data.SPLITS.index(phase.split)
  draw_key, transform_key = jax.random.split(setup.rng_stream(0, number))
  positions = draw_distinct_tasks(draw_key, dataset, num_tasks, **phase.shape)
  key_of = jax.vmap(partial(jax.random.fold_in, transform_key))
  return positions, key_of(jnp.arange(num_tasks))


def task_classes(dataset: Dataset, positions: np.ndarray) -> np.ndarray:
  """Returns the class of each label of tasks, [..., W] int32.

  Args:
    dataset: the data set; its images are sorted by class and not read.
    positions: [..., W, N] positions of images, from `eval_task_indices`.
  """
  ends = np.cumsum(dataset.size)
  return np.searchsorted(ends, positions[..., 0], 'right').astype(np.int32)


def choose_placement(
  config: ConfigDict, sharding: TaskSharding, dataset: Dataset
) -> str:
  """Returns where to store the images of a data set: 'device' or 'host'."""
  if config.data.placement != 'auto':
    return config.data.placement
  num_bytes = _storage(sharding, dataset).nbytes(len(dataset.images))
  return 'device' if sharding.fits_in_memory(num_bytes) else 'host'


def _storage(sharding: TaskSharding, dataset: Dataset) -> ImageStorage:
  """Returns the format in which the devices store the images."""
  assert sharding.mesh is not None
  return image_storage(dataset.images.shape[1:], mesh_platform(sharding.mesh))


class Prefetcher:
  """Prepares the host data of coming meta-iterations in a thread.

  A context manager. With several processes each prepares its own share.

  Args:
    host_data: `host_data(step) -> arrays [n, ...]` for the tasks of this
      process; None if there is none.
    sharding: the devices that the tasks are distributed over.
    length: maximum number of meta-iterations per call.
  """

  def __init__(
    self, host_data: Callable | None, sharding: TaskSharding, length: int
  ):
    self._host_data, self._sharding = host_data, sharding
    self._length = length
    self._pool = ThreadPoolExecutor(1)
    self._pending = {}

  def take(self, step: int, n: int) -> tuple:
    """Returns the data of steps `step` .. `step + n - 1`, [length, T, ...].

    Entries beyond the first n are padding. Raises the errors of `host_data`.
    """
    if self._host_data is None:
      return ()
    for i in range(step, step + n + self._length):
      if i not in self._pending:
        self._pending[i] = self._pool.submit(self._host_data, i)
    rows = [self._pending.pop(i).result() for i in range(step, step + n)]
    stacked = tuple(map(self._stack, zip(*rows, strict=True)))
    return self._sharding.shard(stacked, axis=1)

  def _stack(self, rows) -> np.ndarray:
    stacked = np.zeros((self._length, *rows[0].shape), rows[0].dtype)
    np.stack(rows, out=stacked[: len(rows)])
    return stacked

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._pool.shutdown(cancel_futures=True)


def _regression_sampler(config, phase: Phase) -> Callable:
  """Returns `sample(key) -> Episode` for tasks that need no data set."""
  sample = data.REGRESSIONS[config.data.name].sample_episode
  return partial(sample, shots=phase.shots, queries=phase.queries)


def _image_gatherer(
  config, images: np.ndarray | Array, draw: Callable
) -> Callable:
  """Returns `host_data` of `TrainTasks`: the images of each task.

  Args:
    config: see `maml_jax.default_config`.
    images: [M, H, W, C], on the host.
    draw: `draw(key)`, the positions of the images of a task.
  """
  cpu = jax.local_devices(backend='cpu')[0]
  key = setup.rng_stream(config.seed, setup.TRAIN_STREAM)
  key = jax.device_put(key, cpu)

  @jax.jit
  def positions_of(step):
    keys = task_keys(key, step, config.train.meta_batch_size)
    return jax.vmap(draw)(keys)

  def host_data(step, task_ids=slice(None)):
    with jax.default_device(cpu):
      return (images[np.asarray(positions_of(step))[task_ids]],)

  return host_data
