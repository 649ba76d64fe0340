"""Runs that are stopped in every way end as if they had not been.

Each run is a process of its own, started as users start it, on `glyphs`.
"""

import random
import signal
import subprocess
import time

import pytest

from maml_jax.experiment import checkpoint, metrics_log
from studies import soak

INTERRUPTIONS = 20


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  return soak.Runs(tmp_path_factory.mktemp('runs'))


@pytest.fixture(scope='module')
def straight(runs, tmp_path_factory):
  """The workdir of a run that nobody interrupted."""
  workdir = tmp_path_factory.mktemp('straight')
  runs.finish(workdir)
  epochs = soak.FIELDS['train.num_epochs']
  assert len(soak.validations(workdir)) == epochs
  return workdir


def test_interrupted_again_and_again_it_ends_in_the_same_bits(
  runs, straight, tmp_path
):
  seed = random.randrange(10**6)
  print('random moments of seed', seed)
  rng = random.Random(seed)
  done, ends = soak.soak(runs, straight, tmp_path, rng, INTERRUPTIONS)
  print(done)
  assert done.total() == INTERRUPTIONS
  assert not any(ends), ends


@pytest.mark.parametrize(
  'number, status', [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_told_to_stop_it_saves_and_the_same_command_goes_on(
  runs, straight, tmp_path, number, status
):
  process = runs.start(tmp_path)
  assert soak.wait_for_progress(process, tmp_path)
  process.send_signal(number)
  output = soak.end(process, status)
  step = checkpoint.load(tmp_path, 'latest').step
  assert f'saved at step {step}; the same command goes on' in output
  assert metrics_log.read_records(tmp_path)[-1]['step'] == step
  runs.finish(tmp_path)
  assert soak.differences(straight, tmp_path) == []


def test_a_second_interrupt_leaves_at_once(runs, tmp_path):
  """Even while the main thread waits for the compiler."""
  process = runs.start(tmp_path, '--config.model.width=5')
  while not (tmp_path / 'tensorboard').exists():
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.01)
  process.send_signal(signal.SIGINT)
  assert 'Ctrl-C once more' in ''.join(iter_until(process, 'once more'))
  process.send_signal(signal.SIGINT)
  start = time.monotonic()
  soak.end(process, 130)
  assert time.monotonic() - start < 2


def iter_until(process, words):
  for line in process.stdout:
    yield line
    if words in line:
      return


# File systems of their own, which Linux may let anybody mount

FULL = """
mount -t tmpfs -o size=600k none "$0" || exit
"$@"; echo "status $?"
mount -o remount,size=64m "$0" || exit
"$@"; echo "status $?"
cp -r "$0" "$0-kept"
"""
READ_ONLY = """
mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" || exit
"$@"; echo "status $?"
"""


def mounted(script, workdir, runs):
  """Runs a script in which file systems may be mounted; returns its output."""
  unshare = ['unshare', '--map-root-user', '--mount', 'sh', '-c']
  try:
    subprocess.run([*unshare, 'true'], check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip('no file system can be mounted here')
  workdir.mkdir()
  done = subprocess.run(
    [*unshare, script, workdir, *runs.command(workdir)],
    env=runs.env,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  assert done.returncode == 0, done.stdout
  return done.stdout


def test_on_a_full_disk_it_ends_in_one_line_and_goes_on_with_room(
  runs, straight, tmp_path
):
  output = mounted(FULL, tmp_path / 'run', runs)
  first, status, rest = output.partition('status 2\n')
  assert status and rest.endswith('status 0\n'), output
  assert 'Traceback' not in output and 'Warning' not in output
  (error,) = [line for line in first.splitlines() if 'error' in line]
  assert error.startswith('error: cannot write a checkpoint in ')
  assert ': No space left on device. ' in error
  assert soak.differences(straight, tmp_path / 'run-kept') == []


def test_in_a_workdir_that_is_read_only_it_ends_in_one_line(runs, tmp_path):
  output = mounted(READ_ONLY, tmp_path / 'run', runs)
  message = f'cannot write to {tmp_path}/run: Read-only file system'
  assert output == f'error: {message}\nstatus 2\n'
