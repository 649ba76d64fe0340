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


def test_second_run_in_a_workdir_is_rejected(tmp_path):
  with lock_run_dir(tmp_path, make_config()):
    with pytest.raises(UserError, match='another process is training'):
      with lock_run_dir(tmp_path, make_config()):
        pass
