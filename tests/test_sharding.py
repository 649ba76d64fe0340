"""How many devices a CPU becomes; the rest is in test_learner.py."""

import os
import subprocess
import sys

import pytest

CODE = """
from maml_jax.parallel import use_cores
use_cores({tasks}, {chunk})
import jax
print(jax.device_count())
"""


def devices(tasks, chunk=1, before='', **environment):
  done = subprocess.run(
    [sys.executable, '-c', before + CODE.format(tasks=tasks, chunk=chunk)],
    env=os.environ | {'JAX_PLATFORMS': 'cpu'} | environment,
    capture_output=True,
    text=True,
    check=True,
  )
  return int(done.stdout)


@pytest.mark.parametrize('tasks, chunk', [(4, 1), (6, 3), (7, 1)])
def test_a_cpu_is_as_many_devices_as_tasks_divide_over(tasks, chunk):
  cores = len(os.sched_getaffinity(0))
  fitting = [n for n in range(1, cores + 1) if tasks % (n * chunk) == 0]
  assert devices(tasks, chunk) == max(fitting)


def test_a_number_somebody_has_chosen_stays():
  flag = '--xla_force_host_platform_device_count=3'
  assert devices(4, XLA_FLAGS=flag) == 3
  before = "import jax; jax.config.update('jax_num_cpu_devices', 5)\n"
  assert devices(4, before=before) == 5


def test_it_is_too_late_once_jax_has_run():
  assert devices(4, before='import jax; jax.devices()\n') == 1
