"""The model of a pod: its arithmetic, on numbers that are easily followed."""

import pytest

from benchmarks import pod, workload
from benchmarks.pod import Chip, Task
from benchmarks.workload import Workload

CHIP = Chip(flops=1e12, bandwidth=1e9, links=1e8)


def test_a_task_takes_the_longer_of_arithmetic_and_memory():
  much_to_do = Task(flop=1e12, params=0, temporary=1e6)
  assert pod.seconds_of_task(much_to_do, CHIP, 0.5) == pytest.approx(2.0)
  much_to_move = Task(flop=1e6, params=0, temporary=1e9)
  assert pod.seconds_of_task(much_to_move, CHIP, 0.5) == pytest.approx(2.0)


def test_a_ring_sends_each_number_twice_but_for_one_share():
  """Reduce-scatter and all-gather: n - 1 turns each, of 1/n of the bytes."""
  for chips in (1, 2, 8):
    turns = 2 * (chips - 1)
    sent = turns * 4 * 1000 / chips
    assert pod.all_reduce_bytes(1000, chips) == pytest.approx(sent)


def test_an_iteration_is_its_tasks_and_one_all_reduce():
  task = Task(flop=1e12, params=25_000_000, temporary=1e6)
  alone = pod.iteration(task, CHIP, 1, 3, 0.5)
  assert alone['seconds'] == pytest.approx(6.0)
  assert alone['share_of_reduce'] == 0
  two = pod.iteration(task, CHIP, 2, 3, 0.5)
  assert two['sent'] == pytest.approx(1e8)
  assert two['seconds'] == pytest.approx(7.0)
  assert two['tasks_per_second'] == pytest.approx(6 / 7)
  assert two['share_of_reduce'] == pytest.approx(1 / 7)


def test_memory_is_parameters_four_times_and_what_is_temporary():
  assert pod.resident_bytes(Task(0, 1000, 500)) == 16 * 1000 + 500


def test_counts_the_program_of_one_task(capsys):
  """Of the tiny network: one kernel, one bias and a head."""
  task = pod.count(workload.tiny(Workload()))
  assert task.params == 3 * 3 * 3 * 4 + 4 + 4 * 2
  assert task.flop > 0 and task.temporary > 0
  pod.main(['--tiny'])
  assert '| tiny | 256 | 256 |' in capsys.readouterr().out
