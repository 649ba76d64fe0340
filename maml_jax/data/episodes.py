"""Drawing few-shot tasks on the device, under jit.

A task is first drawn as *positions* of images, int32 [W, S + Q], and then
gathered from wherever the images lie. Legend: W ways, S shots, Q queries per
class, M images of the split.
"""

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax.types import Batch, Episode
from maml_jax.utils.errors import UserError


def draw_positions(key, index, size, *, ways, shots, queries):
  """Draws W distinct classes and S + Q distinct images of each, uniformly.

  Args:
    key: a typed random key.
    index: [classes, max] int32, positions of the images of each class.
    size: [classes] int32, how many of them are no padding.
    ways: W.
    shots: S.
    queries: Q.

  Returns:
    [W, S + Q] int32 positions; the first S of each row are the support set.
  """
  class_key, image_key = jax.random.split(key)
  num_classes, most = index.shape
  classes = jax.random.permutation(class_key, num_classes)[:ways]
  # The images with the S + Q smallest of independent uniform numbers.
  draws = jax.random.uniform(image_key, (ways, most))
  padding = jnp.arange(most)[None] >= size[classes][:, None]
  _, columns = jax.lax.top_k(-jnp.where(padding, 2.0, draws), shots + queries)
  return jnp.take_along_axis(index[classes], columns, axis=1)


def split_episode(image, *, shots):
  """Labels the images of one task, and parts them.

  Args:
    image: [W, S + Q, H, W, C], of whatever type.
    shots: S.

  Returns:
    An `Episode` of these images and labels 0..W-1, class after class.
  """
  ways = image.shape[0]

  def batch(image):
    count = image.shape[1]
    return Batch(
      image.reshape(ways * count, *image.shape[2:]),
      jnp.repeat(jnp.arange(ways, dtype=jnp.int32), count),
    )

  return Episode(batch(image[:, :shots]), batch(image[:, shots:]))


def draw_task_positions(key, dataset, *, ways, shots, queries):
  """The positions [W, S + Q] of the task that `sample_episode` draws."""
  draw_key, _ = jax.random.split(key)
  return draw_positions(
    draw_key,
    dataset.index,
    dataset.size,
    ways=ways,
    shots=shots,
    queries=queries,
  )


def build_task(key, image, *, shots, transform):
  """The `Episode` of the images [W, S + Q, H, W, C] of `draw_task`."""
  _, transform_key = jax.random.split(key)
  return transform(transform_key, split_episode(image, shots=shots))


def sample_episode(key, dataset, *, ways, shots, queries, transform):
  """Draws one task: a pure function of `key` and the data set.

  Args:
    key: a typed random key.
    dataset: a `Dataset` on the device.
    ways: W, at most the number of classes.
    shots: S.
    queries: Q; S + Q at most the images of the smallest class.
    transform: `transform(key, episode) -> episode`: uint8 images to float32,
      normalised and augmented.

  Returns:
    An `Episode` with a support of W*S and a query of W*Q images, disjoint.
  """
  positions = draw_task_positions(
    key, dataset, ways=ways, shots=shots, queries=queries
  )
  image = jnp.take(dataset.images, positions, axis=0)
  return build_task(key, image, shots=shots, transform=transform)


def make_transform(mean=None, std=None):
  """Scales uint8 images to 0..1 float32, then normalises if told how.

  Args:
    mean: per channel, in 0..1; None: leave at 0..1.
    std: per channel.

  Returns:
    A `transform(key, episode) -> episode`.
  """

  def channels(values):
    return jnp.array(values, jnp.float32).reshape(1, 1, 1, -1)

  def scale(batch):
    image = batch.inputs.astype(jnp.float32) / 255
    if mean is not None:
      image = (image - channels(mean)) / channels(std)
    return batch._replace(inputs=image)

  def transform(key, episode):
    del key  # nothing here is random
    return Episode(scale(episode.support), scale(episode.query))

  return transform


def task_keys(key, step, num_tasks):
  """The keys of the tasks of one meta-iteration: [T], whatever the devices."""
  return jax.random.split(jax.random.fold_in(key, step), num_tasks)


def draw_distinct_tasks(key, dataset, num_tasks, *, ways, shots, queries):
  """A fixed stream of tasks, no two of them alike.

  Two tasks are alike if each class of one has the support and the query set of
  a class of the other, in any order. The first n tasks do not depend on
  `num_tasks`.

  Args:
    key: a typed random key; the stream is a pure function of it.
    dataset: a `Dataset`; its images are not touched.
    num_tasks: T.
    ways: W.
    shots: S.
    queries: Q.

  Returns:
    positions [T, W, S + Q] int32, NumPy.

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
  found, seen, start = [], set(), 0
  while len(found) < num_tasks:
    new = 0
    for positions in np.asarray(draw(jnp.arange(start, start + num_tasks))):
      name = _name(positions, shots)
      if name not in seen and len(found) < num_tasks:
        seen.add(name)
        found.append(positions)
        new += 1
    start += num_tasks
    if not new:
      raise UserError(
        f'only {len(found)} distinct {ways}-way {shots}-shot tasks with '
        f'{queries} queries found where {num_tasks} are asked for'
      )
  return np.stack(found)


def _name(positions, shots):
  """The same bytes for tasks that are alike."""
  support = np.sort(positions[:, :shots], axis=1)
  query = np.sort(positions[:, shots:], axis=1)
  rows = np.concatenate([support, query], axis=1)
  return rows[np.lexsort(rows.T[::-1])].tobytes()
