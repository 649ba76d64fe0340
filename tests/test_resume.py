"""Interrupted runs resume and end with bit-exact results.

Each run is a process of its own, started from the command line, on `glyphs`.
"""

import random
import signal
import subprocess
import time

import pytest

from maml_jax.experiment import checkpoint, metrics_log
from studies import soak

pytestmark = pytest.mark.slow

INTERRUPTIONS = 12
SEED = 0


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  return soak.Runs(tmp_path_factory.mktemp('runs'))


@pytest.fixture(scope='module')
def uninterrupted(runs, tmp_path_factory):
  """The workdir of an uninterrupted run."""
  workdir = tmp_path_factory.mktemp('uninterrupted')
  runs.finish(workdir)
  epochs = soak.FIELDS['train.num_epochs']
  assert len(soak.validations(workdir)) == epochs
  return workdir


def test_resume_is_bit_exact_after_random_interruptions(
  runs, uninterrupted, tmp_path
):
  rng = random.Random(SEED)
  counts, differences = soak.soak(
    runs, uninterrupted, tmp_path, rng, INTERRUPTIONS
  )
  print(counts)
  assert counts.total() == INTERRUPTIONS
  assert not any(differences), differences


@pytest.mark.parametrize(
  'number, status',
  [(signal.SIGTERM, 143), (signal.SIGINT, 130)],
  ids=['sigterm', 'sigint'],
)
def test_stop_signal_saves_and_resume_is_bit_exact(
  runs, uninterrupted, tmp_path, number, status
):
  process = runs.start(tmp_path)
  assert soak.wait_for_progress(process, tmp_path)
  process.send_signal(number)
  output = soak.wait_for_exit(process, status)
  step = checkpoint.load(tmp_path, 'latest').step
  assert f'saved at step {step}; run the same command to resume' in output
  assert metrics_log.read_records(tmp_path)[-1]['step'] == step
  runs.finish(tmp_path)
  assert soak.differences(uninterrupted, tmp_path) == []


def test_second_ctrl_c_exits_during_compilation(runs, tmp_path):
  process = runs.start(tmp_path, '--config.model.width=5')
  while not (tmp_path / 'tensorboard').exists():
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.01)
  process.send_signal(signal.SIGINT)
  message = 'press Ctrl-C again to exit immediately'
  assert any(message in line for line in process.stdout)
  process.send_signal(signal.SIGINT)
  output = soak.wait_for_exit(process, 130)
  assert 'saved at step' not in output


# Separate file systems, which Linux may let unprivileged users mount

FULL_DISK = """
mount -t tmpfs -o size=600k none "$0" || exit
"$@"; echo "status $?"
mount -o remount,size=64m "$0" || exit
"$@"; echo "status $?"
cp -r "$0" "$0-kept"
"""
READ_ONLY_DISK = """
mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" || exit
"$@"; echo "status $?"
"""


def run_with_mounts(script, workdir, runs):
  """Runs a script that mounts file systems; returns its output."""
  unshare = ['unshare', '--map-root-user', '--mount', 'sh', '-c']
  try:
    subprocess.run([*unshare, 'true'], check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError):
    pytest.skip('needs permission to mount file systems')
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


def test_full_disk_is_one_error_line_and_resume_is_bit_exact(
  runs, uninterrupted, tmp_path
):
  output = run_with_mounts(FULL_DISK, tmp_path / 'run', runs)
  first, status, rest = output.partition('status 2\n')
  assert status and rest.endswith('status 0\n'), output
  assert 'Traceback' not in output and 'Warning' not in output
  (error,) = [line for line in first.splitlines() if 'error' in line]
  assert error.startswith('error: cannot write a checkpoint in ')
  assert ': No space left on device. ' in error
  assert soak.differences(uninterrupted, tmp_path / 'run-kept') == []


def test_read_only_workdir_is_one_error_line(runs, tmp_path):
  output = run_with_mounts(READ_ONLY_DISK, tmp_path / 'run', runs)
  message = f'cannot write to {tmp_path}/run: Read-only file system'
  assert output == f'error: {message}\nstatus 2\n'
