"""Tests of `maml_jax.experiment.run_dir`."""

import pytest

from maml_jax.default_config import get_config
from maml_jax.experiment.run_dir import lock_run_dir
from maml_jax.utils.errors import UserError


def make_config(**fields):
  config = get_config()
  config.update_from_flattened_dict(fields)
  return config


def add_checkpoint(workdir):
  (workdir / 'checkpoints' / 'latest' / '10').mkdir(parents=True)


def test_run_with_a_checkpoint_rejects_a_different_config(tmp_path):
  with lock_run_dir(tmp_path, make_config()):
    add_checkpoint(tmp_path)
  with lock_run_dir(tmp_path, make_config(**{'train.num_epochs': 99})):
    pass
  with pytest.raises(UserError, match='task.ways: 5 -> 3'):
    with lock_run_dir(tmp_path, make_config(**{'task.ways': 3})):
      pass


def test_run_without_a_checkpoint_accepts_a_different_config(tmp_path):
  with lock_run_dir(tmp_path, make_config(**{'task.ways': 700})):
    pass
  with lock_run_dir(tmp_path, make_config()):
    add_checkpoint(tmp_path)
  with lock_run_dir(tmp_path, make_config()):
    pass


@pytest.mark.parametrize('existing', [None, 'runs', 'runs/new', 'runs/new/x'])
def test_failed_start_leaves_no_files(tmp_path, existing):
  if existing:
    (tmp_path / existing).mkdir(parents=True)
  before = sorted(tmp_path.rglob('*'))
  with pytest.raises(UserError, match='not prepared'):
    with lock_run_dir(tmp_path / 'runs' / 'new', make_config()):
      raise UserError('not prepared')
  kept = set(tmp_path.rglob('*')) - set(before)
  names = {'config.json', 'lock'} if existing == 'runs/new/x' else set()
  assert {path.name for path in kept} == names


def test_failed_run_keeps_its_files(tmp_path):
  workdir = tmp_path / 'run'
  with pytest.raises(UserError):
    with lock_run_dir(workdir, make_config()):
      (workdir / 'metrics.jsonl').touch()
      raise UserError('disk full')
  names = ['config.json', 'lock', 'metrics.jsonl']
  assert sorted(path.name for path in workdir.iterdir()) == names


def test_second_run_in_a_workdir_is_rejected(tmp_path):
  with lock_run_dir(tmp_path, make_config()):
    with pytest.raises(UserError, match='another process is training'):
      with lock_run_dir(tmp_path, make_config()):
        pass
