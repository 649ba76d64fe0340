"""Tests of the list of workloads that are compiled for the docs."""

import json
import subprocess

import pytest

from benchmarks import aot_tables, pod
from benchmarks.chips import CHIPS
from maml_jax import config as config_lib


def test_every_workload_is_a_valid_config_of_a_known_chip():
  seen = set()
  for chip, count, flags in aot_tables.commands(list(CHIPS)):
    config = config_lib.load('mini_5w1s', flags)
    assert config.train.meta_batch_size % count == 0
    assert (key := (chip, count, *flags)) not in seen
    seen.add(key)


def test_only_missing_rows_are_compiled(tmp_path, monkeypatch):
  path = tmp_path / 'rows.jsonl'
  done = {'chip': 'v6e', 'chips': 1, 'name': 'mini_5w1s --precision=bfloat16'}
  path.write_text(json.dumps(done) + '\n')
  ran = []

  def run(command):
    ran.append(command)
    return subprocess.CompletedProcess(command, returncode=len(ran) == 2)

  monkeypatch.setattr(aot_tables.subprocess, 'run', run)
  assert aot_tables.compile_missing(path, ['v6e']) == 1
  expected = len(list(aot_tables.commands(['v6e']))) - 1
  assert len(ran) == expected >= 2
  for command in ran:
    assert f'--json={path}' in command and '--topology=v6e:2x2' in command


def test_table_has_a_line_for_each_row(tmp_path, capsys):
  row = {
    'name': 'mini_5w1s --inner.remat',
    'chip': 'v5e',
    'chips': 4,
    'ms': 16.44,
    'roofline_ms': 6.712,
    'temporary_mb': 1010.3,
    'moved_gb': 5.494,
    'gflop': 22.17,
    'kernels': 2933,
    'compile_s': 630.2,
  }
  path = tmp_path / 'rows.jsonl'
  path.write_text(json.dumps(row) + '\n' + json.dumps({**row, 'chip': 'h100'}))
  assert aot_tables.main(['--rows', str(path), '--table', '--only=v5e']) == 0
  *_, line = lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 3
  assert line == (
    '| 4 v5e | `--inner.remat` | 16.4 ms | 6.71 ms | 1,010 MB | 5.49 GB '
    '| 22.2 | 2,933 | 630 s |'
  )


@pytest.mark.parametrize(
  'line', ['{"name": "cu', '', '[1]', '{}', '{"name": "a", "chip": "v4"}', '\0']
)
@pytest.mark.parametrize('command', [aot_tables, pod])
def test_line_that_is_not_a_row_is_an_error(tmp_path, capsys, command, line):
  path = tmp_path / 'rows.jsonl'
  row = {'name': 'mini_5w1s', 'chip': 'v5e', 'chips': 1}
  path.write_text(f'{json.dumps(row)}\n{line}\n')
  with pytest.raises(SystemExit, match='2'):
    command.main(['--rows', str(path)])
  assert 'line 2 is not a row of benchmarks.aot' in capsys.readouterr().err


@pytest.mark.parametrize('path', ['.', 'missing/rows.jsonl'])
def test_rows_that_cannot_be_written_are_an_error(
  tmp_path, monkeypatch, capsys, path
):
  monkeypatch.setattr(aot_tables.subprocess, 'run', lambda _: pytest.fail())
  with pytest.raises(SystemExit, match='2'):
    aot_tables.main(['--rows', str(tmp_path / path)])
  assert 'error: ' in capsys.readouterr().err


def test_table_without_rows_is_an_error(tmp_path, capsys):
  with pytest.raises(SystemExit, match='2'):
    aot_tables.main(['--rows', str(tmp_path / 'none'), '--table', '--only=v5e'])
  assert 'no rows of v5e' in capsys.readouterr().err
