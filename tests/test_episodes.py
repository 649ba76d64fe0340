"""Tasks have distinct classes and images, drawn uniformly, and are distinct."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.data.episodes import (
  check_dataset,
  draw_distinct_tasks,
  draw_positions,
  make_transform,
  sample_episode,
  task_keys,
)
from maml_jax.types import Dataset
from maml_jax.utils.errors import UserError

SIZES = [4, 6, 5, 9]  # images of each class
SHAPE = {'ways': 3, 'shots': 1, 'queries': 3}


def dataset(sizes=SIZES):
  """Makes images filled with their number: c * 32 + 0, 1, ... for class c."""
  index = np.zeros((len(sizes), max(sizes)), np.int32)
  images, start = [], 0
  for c, size in enumerate(sizes):
    index[c, :size] = start + np.arange(size)
    index[c, size:] = index[c, size - 1]
    images += [(c * 32 + i) % 256 for i in range(size)]
    start += size
  image = np.array(images, np.uint8).reshape(-1, 1, 1, 1)
  return Dataset(
    jnp.array(np.tile(image, (1, 2, 2, 3))),
    jnp.array(index),
    jnp.array(sizes, jnp.int32),
  )


def image_numbers(batch):
  return np.asarray(batch.inputs[..., 0, 0, 0]).round().astype(int)


def sample(key, transform=None):
  return sample_episode(
    key,
    dataset(),
    transform=transform or (lambda key, episode: episode),
    **SHAPE,
  )


def test_classes_and_images_are_distinct_and_labels_match():
  keys = jax.random.split(jax.random.key(0), 200)
  episodes = jax.jit(jax.vmap(sample))(keys)
  for support, query, y_support, y_query in zip(
    image_numbers(episodes.support),
    image_numbers(episodes.query),
    episodes.support.targets,
    episodes.query.targets,
    strict=True,
  ):
    images = np.concatenate([support, query])
    assert len(set(images)) == len(images) == 12
    classes = support // 32
    assert len(set(classes)) == 3
    np.testing.assert_array_equal(y_support, [0, 1, 2])
    np.testing.assert_array_equal(classes[np.asarray(y_query)], query // 32)


def test_classes_and_images_are_uniform():
  """Chi-square test against uniform counts, at significance level 1e-6."""
  from scipy.stats import chi2

  data, draws = dataset(), 6000
  keys = jax.random.split(jax.random.key(1), draws)
  drawn = np.asarray(
    jax.vmap(
      lambda k: draw_positions(
        k, data.index, data.size, ways=2, shots=1, queries=1
      )
    )(keys)
  )
  # Each class is drawn in half of the tasks, its images equally often.
  expected = np.repeat([draws / 2 * 2 / n for n in SIZES], SIZES)
  counts = np.bincount(drawn.ravel(), minlength=sum(SIZES))
  statistic = ((counts - expected) ** 2 / expected).sum()
  assert statistic < chi2.ppf(1 - 1e-6, len(counts) - 1)


def test_task_keys_are_a_function_of_seed_and_step():
  key = jax.random.key(3)
  drawn = [
    image_numbers(jax.vmap(sample)(task_keys(key, step, 4)).query)
    for step in (5, 6, 5)
  ]
  np.testing.assert_array_equal(drawn[0], drawn[2])
  assert (drawn[0] != drawn[1]).any()
  one_by_one = [image_numbers(sample(k).query) for k in task_keys(key, 5, 4)]
  np.testing.assert_array_equal(drawn[0], one_by_one)


def test_distinct_tasks_have_no_duplicates():
  """In so small a data set, random tasks repeat."""
  data, shape = dataset([3, 3, 3]), {'ways': 2, 'shots': 1, 'queries': 1}
  # 3 pairs of classes, 3 * 2 ordered pairs of images in each of the two.
  possible = 3 * 6 * 6
  key = jax.random.key(0)
  tasks = draw_distinct_tasks(key, data, possible - 8, **shape)
  distinct = {frozenset(map(tuple, t)) for t in tasks.tolist()}
  assert tasks.shape == (possible - 8, 2, 2) and len(distinct) == len(tasks)
  np.testing.assert_array_equal(
    draw_distinct_tasks(key, data, 20, **shape),
    draw_distinct_tasks(key, data, 50, **shape)[:20],
  )
  with pytest.raises(UserError, match='distinct 2-way 1-shot tasks'):
    draw_distinct_tasks(key, data, possible + 1, **shape)


def test_distinct_tasks_ignore_the_order_of_images():
  """The same support set in another order is the same task."""
  data, shape = dataset([3, 3]), {'ways': 2, 'shots': 2, 'queries': 1}
  tasks = draw_distinct_tasks(jax.random.key(0), data, 3 * 3, **shape)
  queries = {tuple(sorted(t[:, 2])) for t in tasks}
  assert len(queries) == 9
  with pytest.raises(UserError):
    draw_distinct_tasks(jax.random.key(0), data, 10, **shape)


@pytest.mark.parametrize('normalize', [False, True])
def test_images_are_scaled_and_normalized(normalize):
  mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])
  transform = make_transform(mean, std) if normalize else make_transform()
  key = jax.random.key(0)
  raw, scaled = sample(key), sample(key, transform)
  expected = np.asarray(raw.query.inputs) / 255
  if normalize:
    expected = (expected - mean) / std
  assert scaled.query.inputs.dtype == jnp.float32
  np.testing.assert_allclose(scaled.query.inputs, expected, atol=1e-6)
  np.testing.assert_array_equal(raw.query.targets, scaled.query.targets)


def test_sampling_does_not_copy_the_dataset():
  data = dataset([400] * 10)
  run = jax.jit(
    lambda key, data: sample_episode(
      key, data, transform=lambda k, e: e, **SHAPE
    )
  )
  lowered = run.lower(jax.random.key(0), data)
  assert lowered.compile().memory_analysis().temp_size_in_bytes < 1e5


def test_every_ordered_pair_of_classes_is_drawn():
  data = dataset()
  keys = jax.random.split(jax.random.key(2), 300)
  drawn = jax.vmap(
    lambda k: draw_positions(
      k, data.index, data.size, ways=2, shots=1, queries=1
    )
  )(keys)
  starts = np.concatenate([[0], np.cumsum(SIZES)])
  classes = np.searchsorted(starts, np.asarray(drawn[:, :, 0]), 'right') - 1
  pairs = set(map(tuple, classes.tolist()))
  assert pairs == set(itertools.permutations(range(4), 2))


def test_too_few_images_are_an_error_where_sizes_are_known():
  data = dataset()
  with pytest.raises(UserError) as error:
    sample_episode(
      jax.random.key(0),
      data,
      ways=2,
      shots=2,
      queries=4,
      transform=make_transform(),
    )
  assert str(error.value) == (
    '2 shots and 4 queries are 6 images per class, but class 0 has 4, class 2 '
    'has 5'
  )
  for kwargs, message in (
    ({'ways': 5, 'shots': 1, 'queries': 1}, '5 ways, but the data set has 4'),
    ({'ways': 2, 'shots': 5, 'queries': 5}, 'classes have at most 9'),
  ):
    draw = jax.jit(lambda *args, k=kwargs: draw_positions(*args, **k))
    with pytest.raises(UserError, match=message):
      draw(jax.random.key(0), data.index, data.size)
  with pytest.raises(UserError, match='class 0 has 4'):
    check_dataset(data, ways=2, shots=1, queries=4)
  check_dataset(data, ways=4, shots=1, queries=3)
