"""Group `sampling`: the cost of sampling tasks and of the training loop.

`ms` is the iteration without the extra work and `ms_with` the iteration with
it, timed in turn; `share` is the difference relative to `ms_with`. `alone_ms`
is the time of the extra work in a separate program.

Row `draw`: tasks are drawn from 38,400 images and normalized within the train
step of main.py, instead of being drawn in advance. The following rows also
augment support and query sets. Row `train loop`: the loop of main.py, with
several calls and with logging, instead of a single call.
"""

import contextlib
import functools
import io
import pathlib
import tempfile
import time
from functools import partial
from types import SimpleNamespace

import jax

from benchmarks import with_jax, workload
from benchmarks.machine import ROOT
from benchmarks.table import RangeFormat
from benchmarks.timing import (
  Settings,
  median_and_range,
  milliseconds,
  time_interleaved,
)
from benchmarks.workload import Workload
from maml_jax import config as config_lib
from maml_jax import platforms, sharding, train
from maml_jax.data import spec
from maml_jax.data.augment import with_augmentation
from maml_jax.data.episodes import make_transform
from maml_jax.experiment.metrics_log import MetricsLog
from maml_jax.experiment.run_display import TrainingDisplay
from maml_jax.experiment.task_source import Prefetcher

COLUMNS = {
  'ms': '.2f',
  'ms_with': '.2f',
  'share': RangeFormat('.2%'),
  'alone_ms': '.2f',
  'alone_share': '.2%',
  'repeats': 'd',
}
AUGMENTATIONS = ('flip', 'random_crop', 'color_jitter', 'random_resized_crop')
SIZE = {'classes': 64, 'per_class': 600}  # mini-ImageNet's training split
TINY_SIZE = {'classes': 4, 'per_class': 8}
LOOP_SECONDS = 6.0
MAX_STEPS_PER_CALL = 10


class Fixtures:
  """What the cases share, created on first use."""

  def __init__(self, settings: Settings):
    self.settings = settings
    self.work = Workload()
    if settings.tiny:
      self.work = workload.tiny(self.work)
    self.mesh = with_jax.fitting_mesh(self.work.tasks)

  @functools.cached_property
  def dataset(self):
    size = TINY_SIZE if self.settings.tiny else SIZE
    return with_jax.random_dataset(self.work, self.mesh, **size)

  def sampler(self, augmentation: str = 'none'):
    """Returns a function that draws, normalizes and augments one task."""
    mini = spec('mini_imagenet')
    transform = with_augmentation(
      make_transform(mini.mean, mini.std),
      support=augmentation,
      query=augmentation,
    )
    return with_jax.make_sampler(self.work, transform)

  @functools.cached_property
  def predrawn_steps(self) -> 'Steps':
    """Iterations on tasks that were drawn in advance."""
    count = 4 * self.work.tasks
    keys = jax.random.split(jax.random.key(0), count)
    draw = jax.jit(jax.vmap(self.sampler(), (0, None)))
    episodes = with_jax.replicate(draw(keys, self.dataset), self.mesh)

    def pick(key, episodes):
      chosen = jax.random.randint(key, (), 0, count)
      return jax.tree.map(lambda x: x[chosen], episodes)

    return Steps(*self._train_step(pick), episodes)

  @functools.cached_property
  def sampling_steps(self) -> 'Steps':
    """Iterations that draw and normalize their tasks."""
    return self.augmenting_steps('none')

  def augmenting_steps(self, augmentation: str) -> 'Steps':
    """Returns iterations that draw, normalize and augment their tasks."""
    step, state = self._train_step(self.sampler(augmentation))
    return Steps(step, state, self.dataset)

  def _train_step(self, sample_episode):
    step, state = with_jax.workload_train_step(
      self.work, sample_episode, self.mesh
    )
    return step, with_jax.replicate(state, self.mesh)


class Steps:
  """A train step with its current state.

  Args:
    step: from `make_train_step`.
    state: the initial state.
    shared: the data that the step samples from.
  """

  def __init__(self, step, state, shared):
    self.step, self.state, self.shared = step, state, shared

  def run(self, num_steps: int):
    """Runs meta-iterations and returns their metrics."""
    self.state, metrics = self.step(self.state, self.shared, num_steps)
    return metrics

  def steps_per_call(self, seconds: float, maximum: int) -> int:
    """Returns the number of meta-iterations that take about `seconds`."""
    jax.block_until_ready(self.run(1))
    start = time.perf_counter()
    jax.block_until_ready(self.run(1))
    elapsed = time.perf_counter() - start
    return min(maximum, max(1, int(seconds / elapsed)))


def cases(settings: Settings):
  """Yields drawing, drawing with each augmentation, and the train loop."""
  fixtures = Fixtures(settings)
  yield 'draw', partial(_measure_sampling, fixtures, 'none')
  for name in AUGMENTATIONS:
    yield name, partial(_measure_sampling, fixtures, name)
  yield 'train loop', partial(_measure_train_loop, fixtures)


def _measure_sampling(fixtures: Fixtures, augmentation: str) -> dict:
  if augmentation == 'none':
    steps = fixtures.sampling_steps
  else:
    steps = fixtures.augmenting_steps(augmentation)
  n = steps.steps_per_call(train.SECONDS_PER_CALL, MAX_STEPS_PER_CALL)
  calls = {
    'ms': partial(fixtures.predrawn_steps.run, n),
    'ms_with': partial(steps.run, n),
  }
  row = _compare(time_interleaved(calls, fixtures.settings), n)
  sampler = fixtures.sampler(augmentation)
  sample_all = sharding.map_tasks(
    lambda dataset, key: sampler(key, dataset),
    fixtures.mesh,
    platforms.default_tasks_per_chunk(fixtures.mesh),
  )
  keys = jax.random.split(jax.random.key(0), fixtures.work.tasks)
  alone = partial(jax.jit(sample_all), fixtures.dataset, keys)
  times = time_interleaved({'alone_ms': alone}, fixtures.settings)['alone_ms']
  row |= milliseconds('alone_ms', times)
  return row | {'alone_share': row['alone_ms'] / row['ms_with']}


def _measure_train_loop(fixtures: Fixtures) -> dict:
  steps = fixtures.sampling_steps
  n = steps.steps_per_call(LOOP_SECONDS, with_jax.MAX_STEPS)
  config = config_lib.load(
    str(ROOT / 'configs' / 'mini_5w1s.py'),
    [f'--config.train.steps_per_epoch={n}'],
  )
  with contextlib.ExitStack() as stack:
    context = _make_loop_context(config, steps, stack)

    def run_epoch():
      steps.state, _ = train.run_epoch(context, steps.state, 0)
      return steps.state

    calls = {'ms': partial(steps.run, n), 'ms_with': run_epoch}
    return _compare(time_interleaved(calls, fixtures.settings), n)


def _make_loop_context(
  config, steps: Steps, stack: contextlib.ExitStack
) -> train.LoopContext:
  """Returns the context of a loop that neither validates nor saves."""
  folder = stack.enter_context(tempfile.TemporaryDirectory())
  log = stack.enter_context(MetricsLog(pathlib.Path(folder), 0))
  ignored = io.StringIO()
  with contextlib.redirect_stdout(ignored), contextlib.redirect_stderr(ignored):
    display = stack.enter_context(TrainingDisplay(config, 0))
  return train.LoopContext(
    train=config.train,
    shared=steps.shared,
    prefetcher=Prefetcher(None, None, config.train.steps_per_epoch),
    run_at=lambda epoch: steps.step,
    validate=None,
    call_length=train.CallLengthController(),
    writer=SimpleNamespace(is_due=lambda: False),
    log=log,
    display=display,
    stop=False,
  )


def _compare(times: dict[str, list[float]], n: int) -> dict:
  """Returns a row from the seconds of calls of `n` iterations."""
  pairs = list(zip(times['ms'], times['ms_with'], strict=True))
  return {
    **median_and_range('ms', times['ms'], 1e3 / n),
    **median_and_range('ms_with', times['ms_with'], 1e3 / n),
    **median_and_range('share', [(b - a) / b for a, b in pairs]),
    'steps_per_call': n,
    'repeats': len(pairs),
  }
