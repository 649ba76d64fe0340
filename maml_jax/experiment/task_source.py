"""Where the tasks of a phase come from, and where their images lie.

Images lie on the devices if they fit there. Else they stay on the host,
memory-mapped, and those of each task are gathered ahead of time: the same
tasks, bit by bit, from another place. Regression tasks need no images at all.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax import data
from maml_jax.experiment import setup
from maml_jax.data.episodes import build_task, draw_distinct_tasks, draw_task_positions, sample_episode, split_episode, task_keys
from maml_jax.sharding import TaskSharding
from maml_jax.experiment.setup import Phase
from maml_jax.types import Array, Dataset, PyTree


class TrainTasks(NamedTuple):
  """The tasks of meta-training.

  Attributes:
    shared: what every device holds of the data; () for nothing.
    sample: `sample(key, shared, *given) -> Episode`, under jit.
    given: `given(step, rows) -> arrays [n, ...]`: what these tasks of a
      meta-iteration, by default all, are given by the host; None if `sample`
      takes nothing more.
    place: 'device', 'host' or, without images, ''.
  """

  shared: PyTree
  sample: Callable
  given: Callable[..., tuple] | None
  place: str


class EvalTasks(NamedTuple):
  """The tasks of a validation or an evaluation, always the same.

  Attributes:
    shared: what every device holds of the data; () for nothing.
    recall: `recall(key, shared, *given) -> Episode`, under jit.
    keys: [T], one for each task.
    given: `given(rows [n]) -> arrays [n, ...]` of the tasks in these rows.
  """

  shared: PyTree
  recall: Callable
  keys: Array
  given: Callable[[np.ndarray], tuple]


def train_tasks(config, machine: TaskSharding) -> TrainTasks:
  """The tasks of `experiment.train_phase`.

  Raises:
    UserError: the data are not prepared, or a class has too few images.
  """
  phase = setup.train_phase(config)
  if config.data.name in data.REGRESSIONS:
    function = _function(config, phase)
    return TrainTasks((), lambda key, _: function(key), None, '')
  dataset = setup.load_split(config, phase)
  transform = setup.phase_transform(config, phase)
  place = choose_placement(config, machine, dataset)
  if place == 'device':
    sample = partial(sample_episode, **phase.shape, transform=transform)
    return TrainTasks(machine.put(dataset), sample, None, place)

  def sample(key, shared, image):
    del shared
    return build_task(key, image, shots=phase.shots, transform=transform)

  key = setup.rng_stream(config.seed, setup.TRAIN_STREAM)
  return TrainTasks((), sample, _gatherer(config, phase, dataset, key), place)


def eval_tasks(
    config, phase: Phase, num_tasks: int, machine: TaskSharding
) -> EvalTasks:
  """The first tasks of a phase.

  Raises:
    UserError: the data are not prepared, too few for such tasks, or for so many
      distinct ones.
  """
  number = setup.EVAL_STREAM + data.SPLITS.index(phase.split)
  if config.data.name in data.REGRESSIONS:
    function = _function(config, phase)
    keys = jax.random.split(setup.rng_stream(0, number), num_tasks)
    return EvalTasks((), lambda key, _: function(key), keys, lambda rows: ())
  dataset = setup.load_split(config, phase)
  positions, keys = eval_task_indices(dataset, phase, num_tasks)
  transform = setup.phase_transform(config, phase)

  def recall(key, image):
    return transform(key, split_episode(image, shots=phase.shots))

  if choose_placement(config, machine, dataset) == 'device':
    return EvalTasks(
        machine.put(dataset.image),
        lambda key, shared, rows: recall(key, jnp.take(shared, rows, axis=0)),
        keys,
        lambda rows: (positions[rows],),
    )
  return EvalTasks(
      (),
      lambda key, _, image: recall(key, image),
      keys,
      lambda rows: (dataset.image[positions[rows]],),
  )


def eval_task_indices(
    dataset: Dataset, phase: Phase, num_tasks: int
) -> tuple[np.ndarray, Array]:
  """The tasks of a validation or evaluation, as positions of images.

  They depend on the split and on the shape of a task, not on a seed.

  Args:
    dataset: a `Dataset`; its images are not touched.
    phase: its split, ways, shots and queries.
    num_tasks: T; fewer tasks are the first ones of more.

  Returns:
    Positions [T, W, S + Q] int32, and a key for the transform of each, [T].

  Raises:
    UserError: there are not so many.
  """
  number = setup.EVAL_STREAM + data.SPLITS.index(phase.split)
  draw_key, transform_key = jax.random.split(setup.rng_stream(0, number))
  positions = draw_distinct_tasks(draw_key, dataset, num_tasks, **phase.shape)
  key_of = jax.vmap(partial(jax.random.fold_in, transform_key))
  return positions, key_of(jnp.arange(num_tasks))


def choose_placement(config, machine: TaskSharding, dataset: Dataset) -> str:
  """Where the images of a data set are to lie: 'device' or 'host'."""
  if config.data.placement != 'auto':
    return config.data.placement
  return 'device' if machine.holds(dataset.image.nbytes) else 'host'


class Prefetcher:
  """Makes what meta-iterations are given, in a thread, ahead of time.

  A context manager. Of several processes each makes what its devices take.

  Args:
    given: `given(step) -> arrays [n, ...]` of the tasks of this process; None
      for nothing.
    machine: the devices that the tasks are spread over.
    length: most meta-iterations that are taken at once.
  """

  def __init__(self, given: Callable | None, machine: TaskSharding, length: int):
    self._given, self._machine, self._length = given, machine, length
    self._pool = ThreadPoolExecutor(1)
    self._made = {}

  def take(self, step: int, n: int) -> tuple:
    """What steps `step` .. `step + n - 1` are given: [length, T, ...] each.

    What is behind the first n is not meant. An error of `given` comes up here.
    """
    if self._given is None:
      return ()
    for i in range(step, step + n + self._length):
      if i not in self._made:
        self._made[i] = self._pool.submit(self._given, i)
    rows = [self._made.pop(i).result() for i in range(step, step + n)]
    joined = tuple(map(self._join, zip(*rows, strict=True)))
    return self._machine.spread(joined, axis=1)

  def _join(self, rows) -> np.ndarray:
    joined = np.zeros((self._length, *rows[0].shape), rows[0].dtype)
    np.stack(rows, out=joined[: len(rows)])
    return joined

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._pool.shutdown(cancel_futures=True)


def _function(config, phase: Phase) -> Callable:
  """`sample(key) -> Episode` of tasks that are drawn out of nothing."""
  sample = data.REGRESSIONS[config.data.name].sample_episode
  return partial(sample, shots=phase.shots, queries=phase.queries)


def _gatherer(config, phase: Phase, dataset: Dataset, key) -> Callable:
  """`given` of a `Stream`: the images of the tasks that `sample` would draw."""
  cpu = jax.local_devices(backend='cpu')[0]
  key, index, size = jax.device_put((key, dataset.index, dataset.size), cpu)
  without_images = Dataset((), index, size)

  @jax.jit
  def positions_of(step):
    keys = task_keys(key, step, config.train.num_tasks)
    draw = partial(draw_task_positions, dataset=without_images, **phase.shape)
    return jax.vmap(draw)(keys)

  def given(step, rows=slice(None)):
    with jax.default_device(cpu):
      return (dataset.image[np.asarray(positions_of(step))[rows]],)

  return given
