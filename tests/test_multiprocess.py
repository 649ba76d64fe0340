"""Tests of runs with several processes, and of lost or stopped processes.

The processes run on one machine, on several CPU devices each, and are started
by hand with `--coordinator`.
"""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import small_run

from maml_jax.experiment import checkpoint, metrics_log
from maml_jax.utils import distributed
from maml_jax.utils.errors import UserError

pytestmark = pytest.mark.slow

MAIN = pathlib.Path(__file__).parent.parent / 'main.py'
TIMEOUT = 900  # seconds for a run on a busy machine
CONNECT_SECONDS = 30  # how long CPU devices wait for each other; fixed in JAX
EPOCHS = 5
FIELDS = {
  'outer__optimizer': 'adam',
  'outer__lr': 0.003,
  'train__num_epochs': EPOCHS,
  'train__meta_batch_size': 4,
  'train__steps_per_call': 2,
  'data__placement': 'host',
}


class Run:
  """The processes of one run, each with the same number of devices.

  Args:
    folder: holds logs, data and compiled programs.
    workdir: of the run.
    num_processes: number of processes.
    devices: CPU devices per process.
    *flags: command-line flags.
    **fields: config fields, see `small_run.flags`.
  """

  def __init__(self, folder, workdir, num_processes, devices, *flags, **fields):
    self._logs = []
    port = free_port()
    environment = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': f'{devices}',
      'MAML_JAX_CACHE': str(folder / 'cache'),
      'MAML_JAX_DATA': str(folder / 'data'),
    }
    self.processes = []
    for i in range(num_processes):
      log = folder / f'{workdir.name}-{time.monotonic_ns()}-{i}.log'
      self._logs.append(log)
      connection = [
        f'--coordinator=localhost:{port}',
        f'--num_processes={num_processes}',
        f'--process_id={i}',
      ]
      command = [
        sys.executable,
        MAIN,
        f'--workdir={workdir}',
        *(connection if num_processes > 1 else []),
        *flags,
        *small_run.flags(**FIELDS | fields),
      ]
      with log.open('w') as file:
        self.processes.append(
          subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        )

  def wait(self) -> list[int]:
    """Returns the exit statuses of all processes."""
    deadline = time.monotonic() + TIMEOUT
    try:
      return [p.wait(deadline - time.monotonic()) for p in self.processes]
    except subprocess.TimeoutExpired:
      raise AssertionError('\n'.join(self.outputs)) from None
    finally:
      self.kill()

  def finish(self) -> list[str]:
    """Returns the outputs of all processes, which must succeed."""
    assert not any(self.wait()), '\n'.join(self.outputs)
    return self.outputs

  @property
  def outputs(self) -> list[str]:
    """What the processes have printed so far."""
    return [log.read_text() for log in self._logs]

  def wait_for_progress(self, workdir) -> None:
    """Waits until training has written a record."""
    deadline = time.monotonic() + TIMEOUT
    while not metrics_log.read_records(workdir):
      running = all(p.poll() is None for p in self.processes)
      if not running or time.monotonic() > deadline:
        self.kill()
        raise AssertionError('\n'.join(self.outputs))
      time.sleep(0.01)

  def kill(self) -> None:
    for process in self.processes:
      if process.poll() is None:
        process.kill()
        process.wait()


def run_all(commands, **variables) -> list[str]:
  """Runs Python commands concurrently and returns what they print.

  Args:
    commands: the arguments of each process, all of which must succeed.
    **variables: environment variables.
  """
  environment = os.environ | {'JAX_PLATFORMS': 'cpu'} | variables
  environment['PYTHONPATH'] = str(MAIN.parent)
  processes = [
    subprocess.Popen(
      [sys.executable, *command],
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for command in commands
  ]
  try:
    outputs = [p.communicate(timeout=TIMEOUT)[0] for p in processes]
  finally:
    for process in processes:
      process.kill()
  assert not any(p.returncode for p in processes), outputs
  return outputs


def free_port() -> int:
  """Returns a free port of this host."""
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Holds the logs, data and compiled programs of all runs."""
  return tmp_path_factory.mktemp('hosts')


@pytest.fixture(scope='module')
def uninterrupted(folder):
  """The workdir of an uninterrupted run of one process with four devices."""
  workdir = folder / 'uninterrupted'
  Run(folder, workdir, 1, 4).finish()
  return workdir


def load_arrays(workdir, epochs=EPOCHS):
  """Returns the arrays of the checkpoint after the last epoch."""
  saved = checkpoint.load(workdir, 'latest')
  assert saved.step == epochs * 5
  return saved.params, saved.stats, saved.opt_state


def read_validations(workdir):
  return [
    (r['step'], r['loss'], r['accuracy'])
    for r in metrics_log.read_records(workdir)
    if r['split'] == 'val'
  ]


def assert_bit_identical(a, b, epochs=EPOCHS):
  """Compares checkpoints and validations; each epoch is validated once."""
  arrays = [load_arrays(workdir, epochs) for workdir in (a, b)]
  jax.tree.map(np.testing.assert_array_equal, *arrays)
  assert read_validations(a) == read_validations(b)
  assert len(read_validations(a)) == epochs


def test_preempted_processes_save_the_same_step_and_one_process_resumes(
  folder, uninterrupted
):
  """Sends SIGTERM to one of two processes."""
  workdir = folder / 'preempted'
  # A run of few epochs might end before the signal arrives.
  run = Run(folder, workdir, 2, 2, train__num_epochs=10_000)
  run.wait_for_progress(workdir)
  run.processes[1].send_signal(signal.SIGTERM)
  assert run.wait() == [143, 143], run.outputs
  main_output, other_output = run.outputs
  step = checkpoint.load(workdir, 'latest').step
  assert f'saved at step {step}; run the same command to resume' in main_output
  assert '4 x cpu in 2 processes' in main_output
  assert 'epoch' not in other_output and 'saved' not in other_output
  parts = list((workdir / 'checkpoints' / 'latest').glob('*/state/ocdbt*'))
  assert {path.name[-1] for path in parts} == {'0', '1'}
  epochs = max(step // 5 + 1, EPOCHS)
  outputs = Run(folder, workdir, 1, 4, train__num_epochs=epochs).finish()
  assert f'starting at step {step} of' in outputs[0]
  expected = folder / 'expected'
  shutil.copytree(uninterrupted, expected)
  Run(folder, expected, 1, 4, train__num_epochs=epochs).finish()
  assert_bit_identical(expected, workdir, epochs)


def test_four_processes_resume_the_run_of_one_bit_exactly(
  folder, uninterrupted
):
  """Each process prepares its own share of the images."""
  workdir = folder / 'resumed'
  shutil.copytree(uninterrupted, workdir)
  shutil.rmtree(workdir / 'checkpoints' / 'latest' / f'{EPOCHS * 5}')
  outputs = Run(folder, workdir, 4, 1).finish()
  assert f'starting at step {EPOCHS * 5 - 5} of' in outputs[0]
  assert_bit_identical(uninterrupted, workdir)


def test_evaluation_does_not_depend_on_number_of_processes(
  folder, uninterrupted
):
  results = []
  for num_processes, devices in ((1, 4), (2, 2)):
    workdir = folder / f'evaluated-{num_processes}'
    flags = '--mode=eval', f'--checkpoint={uninterrupted}'
    Run(folder, workdir, num_processes, devices, *flags).finish()
    (file,) = (workdir / 'eval').glob('*.npz')
    results.append(dict(np.load(file)))
  assert results[0].keys() == results[1].keys() > {'accuracy'}
  jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize('victim', [0, 1])
@pytest.mark.parametrize(
  'signal_number',
  [signal.SIGKILL, signal.SIGSTOP],
  ids=lambda number: number.name,
)
def test_process_exits_with_message_if_another_dies_or_hangs(
  folder, signal_number, victim
):
  workdir = folder / f'lost-{signal_number.name}-{victim}'
  fields = {'train__num_epochs': 10_000, 'data__placement': 'device'}
  run = Run(folder, workdir, 2, 2, **fields)
  run.wait_for_progress(workdir)
  run.processes[victim].send_signal(signal_number)
  try:
    status = run.processes[1 - victim].wait(TIMEOUT)
  finally:
    run.kill()
  # JAX aborts a process itself if it waits for a process that sends no
  # heartbeat, loses process 0, or is saving a checkpoint.
  messages = {
    distributed.EXIT_PEER_LOST: f'process {1 - victim} lost another process',
    -signal.SIGABRT: 'This most likely indicates that another task died',
  }
  output = run.outputs[1 - victim]
  assert status in messages, (status, output)
  assert messages[status] in output, (status, output)


def test_float64_results_do_not_depend_on_number_of_processes(tmp_path):
  """Compares parameters, statistics, optimizer state and metrics bit by bit."""
  script = str(MAIN.parent / 'tests' / 'float64_process.py')
  results = []
  for count in (1, 2, 4):
    file = tmp_path / f'{count}.npz'
    address = f'localhost:{free_port()}'
    run_all(
      [[script, address, f'{count}', f'{i}', f'{file}'] for i in range(count)],
      JAX_NUM_CPU_DEVICES=f'{4 // count}',
    )
    with np.load(file) as arrays:
      results.append(dict(arrays))
  dtypes = [str(x.dtype) for name, x in results[0].items() if 'state' in name]
  assert dtypes.count('float64') > 30 and 'float32' not in dtypes
  assert results[0]['loss'].dtype == np.float64
  for result in results[1:]:
    jax.tree.map(np.testing.assert_array_equal, results[0], result)


DELAYED_PROCESS = """
import sys, time
import jax
from maml_jax.utils import distributed
address, process, delay = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
distributed.initialize(address, 2, process)
distributed.connect_devices(jax.devices())
time.sleep(delay)  # as if it compiled while the other has its program cached
maximum = distributed.LaggedMax(0.0)
print(maximum(process), maximum(process))
"""


def test_connected_devices_wait_longer_than_the_connection_timeout():
  """Without `connect_devices` the first process exits after the timeout."""
  address = f'localhost:{free_port()}'
  delays = 0, CONNECT_SECONDS + 10
  commands = [
    ['-c', DELAYED_PROCESS, address, f'{i}', f'{delay}']
    for i, delay in enumerate(delays)
  ]
  for output in run_all(commands):
    assert '0.0 1.0\n' in output, output


def test_all_processes_report_the_error_of_the_main_process(
  folder, uninterrupted
):
  run = Run(folder, uninterrupted, 2, 2, inner__num_steps=3)
  assert run.wait() == [2, 2], run.outputs
  for output in run.outputs:
    assert 'error:' in output and 'inner.num_steps: 1 -> 3' in output


@pytest.mark.parametrize(
  'environment, expected',
  [
    ({}, False),
    ({'SLURM_PROCID': '0', 'SLURM_NTASKS': '4'}, False),  # a batch script
    ({'SLURM_PROCID': '0', 'SLURM_STEP_NUM_TASKS': '1'}, False),
    ({'SLURM_PROCID': '0', 'SLURM_STEP_NUM_TASKS': '4'}, True),
    ({'OMPI_COMM_WORLD_SIZE': '1'}, False),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, True),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, False),  # such as a notebook
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, True),
    ({'JAX_COORDINATOR_ADDRESS': 'a:1'}, True),
  ],
)
def test_launchers_are_detected_by_environment_variables(environment, expected):
  assert distributed.launched_as_multiprocess(environment) == expected


@pytest.mark.parametrize(
  'arguments, message',
  [
    ({'num_processes': 2}, 'must be given together'),
    ({'coordinator': 'a:1', 'process_id': 0}, 'must be given together'),
    (
      {'coordinator': 'a:1', 'num_processes': 2, 'process_id': 2},
      '--process_id=2: must be in 0..1',
    ),
  ],
)
def test_incomplete_or_invalid_process_flags_are_rejected(arguments, message):
  with pytest.raises(UserError, match=message):
    distributed.initialize(**arguments)


def test_single_process_needs_no_others(monkeypatch):
  monkeypatch.setattr(distributed.os, 'environ', {})
  distributed.initialize()
  assert not distributed.is_multiprocess() and distributed.is_main_process()
  assert distributed.on_main_process(lambda: [1]) == [1]
  assert distributed.LaggedMax(0.0)(3.0) == 3.0
