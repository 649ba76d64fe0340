"""Group `sampling`: what an iteration spends beside learning.

`ms` is the iteration without, `ms_with` with it, measured in turn, and `share`
what of the latter it adds; `alone_ms` the same work in a program of its own.
Rows `draw` to `resize`: drawing tasks from 38,400 images and normalising them,
then also augmenting support and query sets, within the train step of main.py,
against tasks that were drawn before. Row `train loop`: the loop of main.py
(several calls, metrics read and written) against one call as long.
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
from benchmarks.measure import ROOT, Settings, in_turn, milliseconds, spread
from benchmarks.table import Ranged
from benchmarks.workload import Workload
from maml_jax import config as config_lib
from maml_jax import sharding, train
from maml_jax.data import spec
from maml_jax.data.augment import with_augmentation
from maml_jax.data.episodes import make_transform
from maml_jax.experiment.metrics_log import MetricsLog
from maml_jax.experiment.run_display import TrainingDisplay
from maml_jax.experiment.task_source import Prefetcher
from maml_jax.sharding import mean_over_tasks

COLUMNS = {
  'ms': '.2f',
  'ms_with': '.2f',
  'share': Ranged('.2%'),
  'alone_ms': '.2f',
  'alone_share': '.2%',
  'repeats': 'd',
}
AUGMENTATIONS = ('flip', 'random_crop', 'color_jitter', 'random_resized_crop')
SIZE = {'classes': 64, 'per_class': 600}  # of mini-ImageNet's training split
TINY_SIZE = {'classes': 4, 'per_class': 8}
LOOP_SECONDS = 6.0


class Bench:
  """What the cases have in common, made when first needed."""

  def __init__(self, settings: Settings):
    self.settings = settings
    self.work = Workload()
    if settings.tiny:
      self.work = workload.tiny(self.work)
    self.mesh = with_jax.fitting_mesh(self.work.tasks)

  @functools.cached_property
  def dataset(self):
    size = TINY_SIZE if self.settings.tiny else SIZE
    return with_jax.synthetic(self.work, self.mesh, **size)

  def sample(self, augmentation='none'):
    """Draws, augments and normalises one task."""
    mini = spec('mini_imagenet')
    transform = with_augmentation(
      make_transform(mini.mean, mini.std),
      support=augmentation,
      query=augmentation,
    )
    return with_jax.sampler(self.work, transform)

  @functools.cached_property
  def given(self):
    """Iterations on tasks that were drawn before."""
    count = 4 * self.work.tasks
    keys = jax.random.split(jax.random.key(0), count)
    draw = jax.jit(jax.vmap(self.sample(), (0, None)))
    episodes = with_jax.replicated(draw(keys, self.dataset), self.mesh)

    def pick(key, episodes):
      chosen = jax.random.randint(key, (), 0, count)
      return jax.tree.map(lambda x: x[chosen], episodes)

    return Steps(*self._step(pick), episodes)

  @functools.cached_property
  def drawn(self):
    """Iterations that draw and normalise their tasks."""
    return self.augmented('none')

  def augmented(self, augmentation):
    """Iterations that augment the tasks that they draw."""
    return Steps(*self._step(self.sample(augmentation)), self.dataset)

  def _step(self, sample):
    step, state = with_jax.train_step(self.work, sample, self.mesh)
    return step, with_jax.replicated(state, self.mesh)


class Steps:
  """A train step that goes on from where it was; `run(n)` returns metrics."""

  def __init__(self, step, state, dataset):
    self.step, self.state, self.dataset = step, state, dataset

  def run(self, num_steps):
    self.state, metrics = self.step(self.state, self.dataset, num_steps)
    return metrics

  def per_call(self, seconds, most):
    """How many meta-iterations take so long, up to a number."""
    jax.block_until_ready(self.run(1))
    start = time.perf_counter()
    jax.block_until_ready(self.run(1))
    spent = time.perf_counter() - start
    return min(most, max(1, int(seconds / spent)))


def cases(settings: Settings):
  """Drawing; drawing and each augmentation; the train loop."""
  bench = Bench(settings)
  yield 'draw', partial(_draw, bench, 'none')
  for name in AUGMENTATIONS:
    yield name, partial(_draw, bench, name)
  yield 'train loop', partial(_loop, bench)


def _draw(bench: Bench, augmentation: str) -> dict:
  plain = augmentation == 'none'
  drawn = bench.drawn if plain else bench.augmented(augmentation)
  n = drawn.per_call(train.SECONDS_PER_CALL, 10)
  calls = {'ms': partial(bench.given.run, n), 'ms_with': partial(drawn.run, n)}
  row = _compare(in_turn(calls, bench.settings), n)
  draw_all = mean_over_tasks(
    lambda dataset, key: ((), bench.sample(augmentation)(key, dataset)),
    bench.mesh,
    sharding.default_tasks_per_chunk(),
  )
  keys = jax.random.split(jax.random.key(0), bench.work.tasks)
  alone = partial(jax.jit(draw_all), bench.dataset, keys)
  times = in_turn({'alone_ms': alone}, bench.settings)['alone_ms']
  row |= milliseconds('alone_ms', times)
  return row | {'alone_share': row['alone_ms'] / row['ms_with']}


def _loop(bench: Bench) -> dict:
  steps = bench.drawn
  n = steps.per_call(LOOP_SECONDS, with_jax.MAX_STEPS)
  config = config_lib.load(
    str(ROOT / 'configs' / 'mini_5w1s.py'),
    [f'--config.train.steps_per_epoch={n}'],
  )
  quiet = io.StringIO()
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    log = stack.enter_context(MetricsLog(pathlib.Path(folder), 0))
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
      screen = stack.enter_context(TrainingDisplay(config, 0))
    session = train.LoopContext(
      train=config.train,
      shared=bench.dataset,
      ahead=Prefetcher(None, None, n),
      run=steps.step,
      validate=None,
      pace=train.CallLengthController(),
      saver=SimpleNamespace(due=lambda: False),
      log=log,
      screen=screen,
      stop=False,
    )

    def epoch():
      steps.state, _ = train._run_epoch(session, steps.state, 0)
      return steps.state

    calls = {'ms': partial(steps.run, n), 'ms_with': epoch}
    return _compare(in_turn(calls, bench.settings), n)


def _compare(times: dict[str, list[float]], n: int) -> dict:
  """A row from the seconds of calls of `n` iterations, without and with."""
  pairs = list(zip(times['ms'], times['ms_with'], strict=True))
  return {
    **spread('ms', times['ms'], 1e3 / n),
    **spread('ms_with', times['ms_with'], 1e3 / n),
    **spread('share', [(b - a) / b for a, b in pairs]),
    'steps_per_call': n,
    'repeats': len(pairs),
  }
