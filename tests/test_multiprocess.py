"""Several processes of main.py are one program, whatever befalls one of them.

They run on one machine, on CPU devices that are faked, as `--coordinator` and
its like start them by hand.
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

MAIN = pathlib.Path(__file__).parent.parent / 'main.py'
PATIENCE = 900  # seconds to compile and to end, on a busy machine
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
  """The processes of one run, each with the same number of devices."""

  def __init__(self, folder, workdir, processes, devices, *flags, **fields):
    self._logs = []
    port = free_port()
    environment = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': f'{devices}',
      'MAML_JAX_CACHE': str(folder / 'cache'),
      'MAML_JAX_DATA': str(folder / 'data'),
    }
    self.processes = []
    for i in range(processes):
      log = folder / f'{workdir.name}-{time.monotonic_ns()}-{i}.log'
      self._logs.append(log)
      place = [
        f'--coordinator=localhost:{port}',
        f'--num_processes={processes}',
        f'--process_id={i}',
      ]
      command = [
        sys.executable,
        MAIN,
        f'--workdir={workdir}',
        *(place if processes > 1 else []),
        *flags,
        *small_run.flags(**FIELDS | fields),
      ]
      with log.open('w') as file:
        self.processes.append(
          subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        )

  def wait(self) -> list[int]:
    """The exit statuses of all processes."""
    deadline = time.monotonic() + PATIENCE
    try:
      return [p.wait(deadline - time.monotonic()) for p in self.processes]
    except subprocess.TimeoutExpired:
      raise AssertionError('\n'.join(self.said)) from None
    finally:
      self.kill()

  def finish(self) -> list[str]:
    """What all processes said; they must have succeeded."""
    assert not any(self.wait()), '\n'.join(self.said)
    return self.said

  @property
  def said(self) -> list[str]:
    return [log.read_text() for log in self._logs]

  def wait_for_progress(self, workdir) -> None:
    """Until a record of the training has been written."""
    deadline = time.monotonic() + PATIENCE
    while not metrics_log.read_records(workdir):
      running = all(p.poll() is None for p in self.processes)
      if not running or time.monotonic() > deadline:
        self.kill()
        raise AssertionError('\n'.join(self.said))
      time.sleep(0.01)

  def kill(self) -> None:
    for process in self.processes:
      if process.poll() is None:
        process.kill()
        process.wait()


def run_all(commands, **variables) -> list[str]:
  """What processes of Python have printed, run side by side; all succeed."""
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
    said = [p.communicate(timeout=PATIENCE)[0] for p in processes]
  finally:
    for process in processes:
      process.kill()
  assert not any(p.returncode for p in processes), said
  return said


def free_port() -> int:
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('hosts')


@pytest.fixture(scope='module')
def straight(folder):
  """The workdir of one process with four devices, never interrupted."""
  workdir = folder / 'straight'
  Run(folder, workdir, 1, 4).finish()
  return workdir


def arrays(workdir, epochs=EPOCHS):
  saved = checkpoint.load(workdir, 'latest')
  assert saved.step == epochs * 5
  return saved.params, saved.stats, saved.opt_state


def validations(workdir):
  return [
    (r['step'], r['loss'], r['accuracy'])
    for r in metrics_log.read_records(workdir)
    if r['split'] == 'val'
  ]


def assert_same_end(a, b, epochs=EPOCHS):
  """The same bits in checkpoints and validations, and no record twice."""
  ends = [arrays(workdir, epochs) for workdir in (a, b)]
  jax.tree.map(np.testing.assert_array_equal, *ends)
  assert validations(a) == validations(b)
  assert len(validations(a)) == epochs


def test_preempted_all_save_the_same_step_and_one_process_goes_on(
  folder, straight
):
  """SIGTERM to one of two: elastic resume, from two processes to one."""
  workdir = folder / 'preempted'
  # JAX's preemption service takes a second or more to tell all of the signal,
  # and the steps are short: by then, a run of few epochs would be over.
  run = Run(folder, workdir, 2, 2, train__num_epochs=10_000)
  run.wait_for_progress(workdir)
  run.processes[1].send_signal(signal.SIGTERM)
  assert run.wait() == [143, 143], run.said
  first, other = run.said
  step = checkpoint.load(workdir, 'latest').step
  assert f'saved at step {step}; the same command goes on' in first
  assert '4 x cpu in 2 processes' in first
  assert 'epoch' not in other and 'saved' not in other
  parts = list((workdir / 'checkpoints' / 'latest').glob('*/state/ocdbt*'))
  assert {path.name[-1] for path in parts} == {'0', '1'}
  epochs = max(step // 5 + 1, EPOCHS)
  said = Run(folder, workdir, 1, 4, train__num_epochs=epochs).finish()
  assert f'from step {step} of' in said[0]
  uninterrupted = folder / 'uninterrupted'
  shutil.copytree(straight, uninterrupted)
  Run(folder, uninterrupted, 1, 4, train__num_epochs=epochs).finish()
  assert_same_end(uninterrupted, workdir, epochs)


def test_four_processes_go_on_for_one(folder, straight):
  """From one process to four, each with its own part of what is given."""
  workdir = folder / 'grown'
  shutil.copytree(straight, workdir)
  shutil.rmtree(workdir / 'checkpoints' / 'latest' / f'{EPOCHS * 5}')
  said = Run(folder, workdir, 4, 1).finish()
  assert f'from step {EPOCHS * 5 - 5} of' in said[0]
  assert_same_end(straight, workdir)


def test_evaluates_as_one_process_does(folder, straight):
  results = []
  for processes, devices in ((1, 4), (2, 2)):
    workdir = folder / f'evaluated-{processes}'
    source = f'--checkpoint={straight}'
    Run(folder, workdir, processes, devices, '--mode=eval', source).finish()
    (file,) = (workdir / 'eval').glob('*.npz')
    results.append(dict(np.load(file)))
  assert results[0].keys() == results[1].keys() > {'accuracy'}
  jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize('victim', [0, 1])
@pytest.mark.parametrize('fate', [signal.SIGKILL, signal.SIGSTOP])
def test_one_of_two_dies_or_hangs_and_the_other_says_so(folder, fate, victim):
  workdir = folder / f'orphan-{fate.name}-{victim}'
  fields = {'train__num_epochs': 10_000, 'data__placement': 'device'}
  run = Run(folder, workdir, 2, 2, **fields)
  run.wait_for_progress(workdir)
  run.processes[victim].send_signal(fate)
  try:
    status = run.processes[1 - victim].wait(
      distributed.HEARTBEAT_TIMEOUT_SECONDS + 30
    )
  finally:
    run.kill()
  # JAX itself ends a process that waits for a silent one, that is without
  # process 0, or in the midst of a save.
  by_jax = 'This most likely indicates that another task died'
  by_us = f'process {1 - victim} has lost another'
  words = {distributed.EXIT_PEER_LOST: by_us, -signal.SIGABRT: by_jax}
  said = run.said[1 - victim]
  assert words.get(status, 'another status') in said, (status, said)


MEET = """
import sys, time
import jax
from maml_jax import hosts
address, process = sys.argv[1], int(sys.argv[2])
hosts.join(address, 2, process)
hosts.meet(jax.devices())
time.sleep(40 * process)  # one compiles, the other has its program already
largest = hosts.Largest(0.0)
print(largest(process), largest(process))
"""


def test_in_float64_several_give_the_bits_of_one(tmp_path):
  """Parameters, statistics, optimiser and metrics after three outer steps."""
  script = str(MAIN.parent / 'tests' / 'float64_process.py')
  ends = []
  for count in (1, 2, 4):
    file = tmp_path / f'{count}.npz'
    place = [f'localhost:{free_port()}', f'{count}']
    run_all(
      [[script, *place, f'{i}', str(file)] for i in range(count)],
      JAX_NUM_CPU_DEVICES=f'{4 // count}',
    )
    with np.load(file) as arrays:
      ends.append(dict(arrays))
  kinds = [str(x.dtype) for name, x in ends[0].items() if 'state' in name]
  assert kinds.count('float64') > 30 and 'float32' not in kinds
  assert ends[0]['loss'].dtype == np.float64
  for end in ends[1:]:
    jax.tree.map(np.testing.assert_array_equal, ends[0], end)


def test_once_they_have_met_they_wait_for_each_other():
  """Without `meet` the first one gives up after 30 seconds."""
  address = f'localhost:{free_port()}'
  for out in run_all([['-c', MEET, address, f'{i}'] for i in range(2)]):
    assert '0.0 1.0\n' in out, out


def test_what_one_refuses_all_refuse(folder, straight):
  run = Run(folder, straight, 2, 2, inner__num_steps=3)
  assert run.wait() == [2, 2], run.said
  for said in run.said:
    assert 'error:' in said and 'inner.num_steps: 1 -> 3' in said


@pytest.mark.parametrize(
  'environment, several',
  [
    ({}, False),
    ({'SLURM_PROCID': '0', 'SLURM_NTASKS': '4'}, False),  # a batch script
    ({'SLURM_PROCID': '0', 'SLURM_STEP_NUM_TASKS': '1'}, False),
    ({'SLURM_PROCID': '0', 'SLURM_STEP_NUM_TASKS': '4'}, True),
    ({'OMPI_COMM_WORLD_SIZE': '1'}, False),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, True),
    ({'KUBERNETES_SERVICE_HOST': '10.0.0.1'}, False),  # perhaps a notebook
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, True),
    ({'JAX_COORDINATOR_ADDRESS': 'a:1'}, True),
  ],
)
def test_a_launcher_is_known_by_its_variables(environment, several):
  assert distributed.launched_as_multiprocess(environment) == several


@pytest.mark.parametrize(
  'given, message',
  [
    ({'num_processes': 2}, 'go together'),
    ({'coordinator': 'a:1', 'process_id': 0}, 'go together'),
    (
      {'coordinator': 'a:1', 'num_processes': 2, 'process_id': 2},
      'they are 0 to 1',
    ),
  ],
)
def test_refuses_half_of_the_flags(given, message):
  with pytest.raises(UserError, match=message):
    distributed.initialize(**given)


def test_one_process_joins_and_waits_for_nobody(monkeypatch):
  monkeypatch.setattr(distributed.os, 'environ', {})
  distributed.initialize()
  assert not distributed.is_multiprocess() and distributed.is_main_process()
  assert distributed.on_main_process(lambda: [1]) == [1]
  assert distributed.LaggedMax(0.0)(3.0) == 3.0
