"""Who may work in a directory."""

import pytest

from configs import default
from maml_jax.experiment.run_dir import lock_run_dir
from maml_jax.utils.errors import UserError


def config(**fields):
  result = default.get_config()
  result.update_from_flattened_dict(fields)
  return result


def begin(workdir):
  (workdir / 'checkpoints' / 'latest' / '10').mkdir(parents=True)


def test_a_run_keeps_its_config(tmp_path):
  with lock_run_dir(tmp_path, config()):
    begin(tmp_path)
  with lock_run_dir(tmp_path, config(**{'train.num_epochs': 99})):
    pass
  with pytest.raises(UserError, match='task.ways: 5 -> 3'):
    with lock_run_dir(tmp_path, config(**{'task.ways': 3})):
      pass


def test_a_config_with_which_nothing_was_trained_binds_nobody(tmp_path):
  with lock_run_dir(tmp_path, config(**{'task.ways': 700})):
    pass
  with lock_run_dir(tmp_path, config()):
    begin(tmp_path)
  with lock_run_dir(tmp_path, config()):
    pass


def test_one_at_a_time(tmp_path):
  with lock_run_dir(tmp_path, config()):
    with pytest.raises(UserError, match='another process is training'):
      with lock_run_dir(tmp_path, config()):
        pass
