"""Runs that are stopped in every way end as if they had not been.

Each run is a process of its own, started as users start it, on `glyphs`.
"""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny

from maml_jax import checkpoint, metrics

MAIN = pathlib.Path(__file__).parent.parent / 'main.py'
KILLS = 12
PATIENCE = 180  # seconds for a process to compile, or to end
LENGTH = {'train__num_epochs': 40, 'train__steps_per_epoch': 7}


class Runs:
  """Starts processes that share data and compiled programs."""

  def __init__(self, folder: pathlib.Path):
    self._env = os.environ | {
        'MAML_JAX_DATA': str(folder / 'data'),
        'MAML_JAX_CACHE': str(folder / 'cache'),
    }

  def start(self, workdir, **overrides):
    adam = {'outer__optimizer': 'adam', 'outer__lr': 0.003}
    fields = adam | {'train__num_tasks': 2} | LENGTH | overrides
    return subprocess.Popen(
        [sys.executable, MAIN, f'--workdir={workdir}', *tiny.flags(**fields)],
        env=self._env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

  def finish(self, workdir, **overrides) -> str:
    """Runs to the end; returns what was printed."""
    process = self.start(workdir, **overrides)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return output


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  return Runs(tmp_path_factory.mktemp('runs'))


@pytest.fixture(scope='module')
def straight(runs, tmp_path_factory):
  """The workdir of a run that nobody interrupted."""
  workdir = tmp_path_factory.mktemp('straight')
  runs.finish(workdir)
  return workdir


def size_of_metrics(workdir) -> int:
  path = workdir / metrics.FILE
  return path.stat().st_size if path.exists() else 0


def wait_for_progress(process, workdir) -> None:
  """Waits until the process has written more metrics than there are."""
  size, deadline = size_of_metrics(workdir), time.monotonic() + PATIENCE
  while size_of_metrics(workdir) <= size:
    assert process.poll() is None, process.communicate()[0]
    assert time.monotonic() < deadline
    time.sleep(0.01)


def assert_same_end(a, b):
  """The same bits in checkpoints and validations, and no step twice."""
  for which in ('latest', 'best'):
    one, other = (checkpoint.load(path, which) for path in (a, b))
    jax.tree.map(np.testing.assert_array_equal, one[2:], other[2:])
  validations = []
  for workdir in (a, b):
    records = metrics.read(workdir)
    assert len({(r['step'], r['split']) for r in records}) == len(records)
    validations.append([
        (r['step'], r['loss'], r['accuracy'], r['interval'])
        for r in records
        if r['split'] == 'val'
    ])
  assert validations[0] == validations[1]
  assert len(validations[0]) == LENGTH['train__num_epochs']


def truncate_newest(workdir):
  folder = workdir / 'checkpoints' / 'latest'
  newest = max(int(p.name) for p in folder.iterdir() if p.name.isdecimal())
  file = next((folder / str(newest) / 'state').glob('**/d/*'))
  os.truncate(file, file.stat().st_size // 2)
  return folder / str(newest)


def test_killed_again_and_again_it_ends_in_the_same_bits(
    runs, straight, tmp_path
):
  seed = random.randrange(10**6)
  print('random moments of seed', seed)
  rng = random.Random(seed)
  for kill in range(KILLS):
    process = runs.start(tmp_path)
    if kill % 4 == 3:  # as it starts
      time.sleep(rng.uniform(0, 5))
    else:  # as it trains, validates or saves
      wait_for_progress(process, tmp_path)
      time.sleep(rng.uniform(0, 0.5))
    process.kill()
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output
  damaged = truncate_newest(tmp_path)
  assert f'damaged checkpoint {damaged}' in runs.finish(tmp_path)
  assert_same_end(straight, tmp_path)


@pytest.mark.parametrize(
    'number, status', [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_told_to_stop_it_saves_and_the_same_command_goes_on(
    runs, straight, tmp_path, number, status
):
  process = runs.start(tmp_path)
  wait_for_progress(process, tmp_path)
  process.send_signal(number)
  output, _ = process.communicate(timeout=PATIENCE)
  assert process.returncode == status, output
  step = checkpoint.load(tmp_path, 'latest').step
  assert f'saved at step {step}; the same command goes on' in output
  assert metrics.read(tmp_path)[-1]['step'] == step
  runs.finish(tmp_path)
  assert_same_end(straight, tmp_path)


def test_a_second_interrupt_leaves_at_once(runs, tmp_path):
  """Even while the main thread waits for the compiler."""
  process = runs.start(tmp_path, model__width=5)
  while not (tmp_path / 'tensorboard').exists():
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.01)
  process.send_signal(signal.SIGINT)
  assert 'Ctrl-C once more' in ''.join(iter_until(process, 'once more'))
  process.send_signal(signal.SIGINT)
  start = time.monotonic()
  process.communicate(timeout=PATIENCE)
  assert process.returncode == 130
  assert time.monotonic() - start < 2


def iter_until(process, words):
  for line in process.stdout:
    yield line
    if words in line:
      return
