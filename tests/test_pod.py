"""Tests of the model of a TPU pod, on simple numbers."""

import json

import pytest

from benchmarks import pod
from benchmarks.chips import Chip

CHIP = Chip({'float32': 1e12}, memory_bandwidth=1e9, link_bandwidth=1e8)
ROW = {
  'name': 'mini_5w1s',
  'chip': 'v5e',
  'chips': 1,
  'tasks': 3.0,
  'parameters': 25_000_000,
  'ms': 6000.0,
  'peak_mb': 2340.0,
}


@pytest.mark.parametrize('chips', [1, 2, 8])
def test_ring_all_reduce_bytes(chips):
  """Reduce-scatter and all-gather: n - 1 steps each, 1/n of the bytes each."""
  steps = 2 * (chips - 1)
  sent = steps * 4 * 1000 / chips
  assert pod.all_reduce_bytes(1000, chips) == pytest.approx(sent)


def test_iteration_adds_one_all_reduce():
  one = pod.estimate_iteration(ROW, CHIP, 1)
  assert one['seconds'] == pytest.approx(6.0)
  assert one['all_reduce_share'] == 0
  two = pod.estimate_iteration(ROW, CHIP, 2)
  assert two['sent_bytes'] == pytest.approx(1e8)
  assert two['seconds'] == pytest.approx(7.0)
  assert two['tasks_per_second'] == pytest.approx(6 / 7)
  assert two['all_reduce_share'] == pytest.approx(1 / 7)


def test_table_uses_the_fastest_row_of_one_chip(tmp_path, capsys):
  path = tmp_path / 'rows.jsonl'
  rows = [
    {**ROW, 'ms': 9000.0, 'name': 'mini_5w1s --inner.remat'},
    {**ROW, 'name': 'mini_5w1s --precision=bfloat16'},
    {**ROW, 'ms': 7000.0},
    {**ROW, 'ms': 1000.0, 'name': 'mini_5w1s --inner.num_steps=1'},
    {**ROW, 'ms': 1000.0, 'chips': 4},
    {key: ROW[key] for key in ROW if key != 'ms'},
  ]
  path.write_text(''.join(json.dumps(x) + '\n' for x in rows))
  assert pod.main([f'--rows={path}']) == 0
  _, _, *lines = capsys.readouterr().out.splitlines()
  # 199 MB over links of 200 GB/s take 1 ms.
  assert lines == [
    '| v5e | `--precision=bfloat16` | 2.34 GB | 6001.00 ms | 0 | 4 | 32 | 128 '
    '| 199.22 MB | 0.02% |'
  ]


def test_missing_rows_are_one_line(tmp_path, capsys):
  with pytest.raises(SystemExit):
    pod.main([f'--rows={tmp_path / "none"}'])
  assert (
    'no rows of one TPU; see benchmarks.aot_tables' in capsys.readouterr().err
  )
