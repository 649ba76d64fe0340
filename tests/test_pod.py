"""Tests of the model of a TPU pod, on simple numbers."""

import pytest

from benchmarks import pod, workload
from benchmarks.pod import Chip, Task
from benchmarks.workload import Workload

CHIP = Chip(peak_flops=1e12, memory_bandwidth=1e9, link_bandwidth=1e8)


@pytest.mark.parametrize(
  'task',
  [
    pytest.param(Task(1e12, params=0, temporary_bytes=1e6), id='compute-bound'),
    pytest.param(Task(1e6, params=0, temporary_bytes=1e9), id='memory-bound'),
  ],
)
def test_task_takes_the_longer_of_compute_and_memory_time(task):
  assert pod.seconds_per_task(task, CHIP, 0.5) == pytest.approx(2.0)


@pytest.mark.parametrize('chips', [1, 2, 8])
def test_ring_all_reduce_bytes(chips):
  """Reduce-scatter and all-gather: n - 1 steps each, 1/n of the bytes each."""
  steps = 2 * (chips - 1)
  sent = steps * 4 * 1000 / chips
  assert pod.all_reduce_bytes(1000, chips) == pytest.approx(sent)


def test_iteration_adds_tasks_and_one_all_reduce():
  task = Task(flops=1e12, params=25_000_000, temporary_bytes=1e6)
  one = pod.estimate_iteration(task, CHIP, 1, 3, 0.5)
  assert one['seconds'] == pytest.approx(6.0)
  assert one['all_reduce_share'] == 0
  two = pod.estimate_iteration(task, CHIP, 2, 3, 0.5)
  assert two['sent_bytes'] == pytest.approx(1e8)
  assert two['seconds'] == pytest.approx(7.0)
  assert two['tasks_per_second'] == pytest.approx(6 / 7)
  assert two['all_reduce_share'] == pytest.approx(1 / 7)


def test_resident_memory_is_four_times_parameters_plus_temporary():
  assert pod.resident_bytes(Task(0, 1000, 500)) == 16 * 1000 + 500


def test_counts_one_task_of_the_tiny_network(capsys):
  task = pod.count_task(workload.tiny(Workload()))
  assert task.params == 3 * 3 * 3 * 4 + 4 + 4 * 2  # kernel, bias and head
  assert task.flops > 0
  assert task.temporary_bytes > 0
  pod.main(['--tiny'])
  assert '| tiny | 256 | 256 |' in capsys.readouterr().out
