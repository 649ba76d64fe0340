"""Few-shot tasks drawn on the device, under jit.

A task is first drawn as image positions, int32 [W, S + Q]; then its images are
gathered from the host or the device. Shape legend: T tasks, W ways, S shots,
Q queries per class.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from maml_jax.types import Array, Batch, Dataset, Episode
from maml_jax.utils.errors import UserError

__all__ = [
  'check_dataset',
  'draw_distinct_tasks',
  'draw_positions',
  'draw_task_positions',
  'make_transform',
  'sample_episode',
  'split_episode',
  'take_episode',
  'task_keys',
  'transform_episode',
]


def draw_positions(
  key: Array,
  index: np.ndarray | Array,
  size: np.ndarray | Array,
  *,
  ways: int,
  shots: int,
  queries: int,
) -> Array:
  """Draws W distinct classes and S + Q distinct images of each, uniformly.

  Args:
    key: a typed random key.
    index: [classes, max] int32, positions of the images of each class.
    size: [classes] int32, number of images of each class; the rest is padding.
    ways: W.
    shots: S.
    queries: Q.

  Returns:
    [W, S + Q] int32 positions; the first S of each row form the support set.

  Raises:
    UserError: there are too few classes or images, as far as this is known: if
      `size` is an argument of a jitted function, only its shape is. Call
      `check_dataset` before.
  """
  _check_sizes(index, size, ways=ways, shots=shots, queries=queries)
  class_key, image_key = jax.random.split(key)
  num_classes, max_images = index.shape
  classes = jax.random.permutation(class_key, num_classes)[:ways]
  # Each image gets a uniform number; those with the S + Q smallest are drawn.
  draws = jax.random.uniform(image_key, (ways, max_images))
  padding = jnp.arange(max_images)[None] >= size[classes][:, None]
  _, columns = jax.lax.top_k(-jnp.where(padding, 2.0, draws), shots + queries)
  return jnp.take_along_axis(index[classes], columns, axis=1)


def check_dataset(
  dataset: Dataset, *, ways: int, shots: int, queries: int
) -> None:
  """Checks that tasks can be drawn from a data set without repeating images.

  `sample_episode` does so itself, unless the data set is an argument of a
  jitted function: then classes with too few images would have support images
  among their query images.

  Args:
    dataset: a `Dataset`.
    ways: W.
    shots: S.
    queries: Q.

  Raises:
    UserError: there are fewer than W classes, or a class has fewer than S + Q
      images; the message lists these classes by number.
  """
  _check_sizes(
    dataset.index, dataset.size, ways=ways, shots=shots, queries=queries
  )


def _check_sizes(index, size, *, ways, shots, queries):
  num_classes, max_images = index.shape
  if ways > num_classes:
    raise UserError(f'{ways} ways, but the data set has {num_classes} classes')
  is_known = not isinstance(size, Tracer)
  sizes = np.asarray(size) if is_known else np.full(num_classes, max_images)
  short = np.flatnonzero(sizes < shots + queries)
  if not len(short):
    return
  reason = f'classes have at most {max_images}'
  if is_known:
    reason = ', '.join(f'class {c} has {sizes[c]}' for c in short[:5])
    reason += f', and {len(short) - 5} more' if len(short) > 5 else ''
  raise UserError(
    f'{shots} shots and {queries} queries are {shots + queries} images per '
    f'class, but {reason}'
  )


def split_episode(images: Array | np.ndarray, *, shots: int) -> Episode:
  """Splits the images of one task into support and query, and labels them.

  Args:
    images: [W, S + Q, ...], images or other arrays of any dtype.
    shots: S.

  Returns:
    An `Episode` of these images and labels 0..W-1, ordered by class.
  """
  ways = images.shape[0]

  def make_batch(images):
    count = images.shape[1]
    return Batch(
      images.reshape(ways * count, *images.shape[2:]),
      jnp.repeat(jnp.arange(ways, dtype=jnp.int32), count),
    )

  return Episode(make_batch(images[:, :shots]), make_batch(images[:, shots:]))


def draw_task_positions(
  key: Array, dataset: Dataset, *, ways: int, shots: int, queries: int
) -> Array:
  """Returns the image positions [W, S + Q] of the task of `sample_episode`.

  Args:
    key: see `sample_episode`.
    dataset: a `Dataset`; only `index` and `size` are used.
    ways: W.
    shots: S.
    queries: Q.
  """
  draw_key, _ = jax.random.split(key)
  return draw_positions(
    draw_key,
    dataset.index,
    dataset.size,
    ways=ways,
    shots=shots,
    queries=queries,
  )


def take_episode(take: Callable, positions: Array, *, shots: int) -> Episode:
  """Returns the `Episode` of the images at the positions of a task.

  Support and query images are gathered separately. Slicing them from the
  images of all classes would copy them on a TPU.

  Args:
    take: `take(positions)`, which gathers images [N, H, W, C] at positions [N].
    positions: [W, S + Q] int32, from `draw_positions`.
    shots: S.
  """
  episode = split_episode(positions, shots=shots)
  return Episode(*(x._replace(inputs=take(x.inputs)) for x in episode))


def transform_episode(
  key: Array, episode: Episode, transform: Callable
) -> Episode:
  """Transforms the images of a task as `sample_episode` does.

  Args:
    key: the key passed to `draw_task_positions`.
    episode: uint8 images.
    transform: see `sample_episode`.
  """
  _, transform_key = jax.random.split(key)
  return transform(transform_key, episode)


def sample_episode(
  key: Array,
  dataset: Dataset,
  *,
  ways: int,
  shots: int,
  queries: int,
  transform: Callable,
) -> Episode:
  """Draws one task, a pure function of `key` and the data set.

  Args:
    key: a typed random key.
    dataset: a `Dataset` on the device.
    ways: W, at most the number of classes.
    shots: S.
    queries: Q; S + Q is at most the number of images of the smallest class.
    transform: `transform(key, episode) -> episode`, which augments and
      normalizes uint8 images and returns float32 images.

  Returns:
    An `Episode` with W*S support images and W*Q query images, all distinct.

  Raises:
    UserError: there are too few classes or images, see `check_dataset`.
  """
  positions = draw_task_positions(
    key, dataset, ways=ways, shots=shots, queries=queries
  )
  take = partial(jnp.take, dataset.images, axis=0, mode='clip')
  episode = take_episode(take, positions, shots=shots)
  return transform_episode(key, episode, transform)


def make_transform(
  mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Callable:
  """Makes a transform of uint8 images to float32, optionally normalized.

  Args:
    mean: mean of each channel, in 0..1; None scales images to 0..1 only.
    std: standard deviation of each channel; required if `mean` is given.

  Returns:
    A `transform(key, episode) -> episode`.
  """

  def per_channel(values):
    return jnp.array(values, jnp.float32).reshape(1, 1, 1, -1)

  def normalize(batch):
    images = batch.inputs.astype(jnp.float32) / 255
    if mean is not None:
      images = (images - per_channel(mean)) / per_channel(std)
    return batch._replace(inputs=images)

  def transform(key, episode):
    del key  # deterministic
    return Episode(normalize(episode.support), normalize(episode.query))

  return transform


def task_keys(key: Array, step: int | Array, num_tasks: int) -> Array:
  """Returns the keys [T] of the tasks of one meta-iteration.

  They do not depend on the number of devices.
  """
  return jax.random.split(jax.random.fold_in(key, step), num_tasks)


def draw_distinct_tasks(
  key: Array,
  dataset: Dataset,
  num_tasks: int,
  *,
  ways: int,
  shots: int,
  queries: int,
) -> np.ndarray:
  """Draws a fixed sequence of distinct tasks.

  Two tasks are equal if they have the same classes with the same support and
  query sets, in any order. The first n tasks do not depend on `num_tasks`.

  Args:
    key: a typed random key; the sequence is a pure function of it.
    dataset: a `Dataset`; only `index` and `size` are used.
    num_tasks: T.
    ways: W.
    shots: S.
    queries: Q.

  Returns:
    Image positions, a NumPy array [T, W, S + Q] int32.

  Raises:
    UserError: the data set has too few images for so many distinct tasks.
  """
  draw = jax.jit(
    jax.vmap(
      lambda i: draw_positions(
        jax.random.fold_in(key, i),
        jnp.asarray(dataset.index),
        jnp.asarray(dataset.size),
        ways=ways,
        shots=shots,
        queries=queries,
      )
    )
  )
  tasks, seen, start = [], set(), 0
  while len(tasks) < num_tasks:
    num_new = 0
    for positions in np.asarray(draw(jnp.arange(start, start + num_tasks))):
      identity = _task_identity(positions, shots)
      if identity not in seen and len(tasks) < num_tasks:
        seen.add(identity)
        tasks.append(positions)
        num_new += 1
    start += num_tasks
    if not num_new:
      raise UserError(
        f'requested {num_tasks} distinct {ways}-way {shots}-shot tasks with '
        f'{queries} queries per class, found only {len(tasks)}: reduce '
        'eval.num_tasks or val.num_tasks'
      )
  return np.stack(tasks)


def _task_identity(positions, shots):
  """Returns bytes that are the same for equal tasks only."""
  support = np.sort(positions[:, :shots], axis=1)
  query = np.sort(positions[:, shots:], axis=1)
  rows = np.concatenate([support, query], axis=1)
  return rows[np.lexsort(rows.T[::-1])].tobytes()
