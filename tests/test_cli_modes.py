"""What the command line makes of its flags: config, source, workdir."""

import dataclasses

import jax
import numpy as np
import pytest
import small_run

from maml_jax import cli, data, train
from maml_jax import config as config_lib
from maml_jax.evaluation import evaluate, sweep
from maml_jax.experiment import checkpoint
from maml_jax.utils.errors import UserError

PRESET = str(small_run.PRESET)


@pytest.fixture
def called(monkeypatch, tmp_path):
  """What the modes were called with: (name, config, source, workdir)."""
  calls = []
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(
    train,
    'train',
    lambda config, workdir: calls.append(('train', config, None, workdir)) or 0,
  )
  for module, name in ((evaluate, 'evaluate'), (sweep, 'grid')):
    monkeypatch.setattr(
      module,
      name,
      lambda config, source, workdir, name=name: calls.append(
        (name, config, source, workdir)
      ),
    )

  def run(*argv):
    cli.run(argv)
    return calls[-1]

  return run


def saved(path, **fields):
  """A checkpoint of a linear network."""
  params = {'encoder': {'kernel': np.ones((2, 2))}}
  return checkpoint.Checkpoint(
    path, small_run.config(**fields), 3, params, {}, [], {'loss': 1.0}
  )


@pytest.fixture
def shipped(tmp_path):
  return checkpoint.export(saved(None, task__ways=4), tmp_path / 'c' / 'four')


@pytest.fixture
def run_of_six(tmp_path):
  """A workdir with a checkpoint."""
  workdir = tmp_path / 'six'
  path = workdir / 'checkpoints' / 'best' / '3'
  checkpoint.export(saved(None, task__ways=6), path)
  text = config_lib.to_json(small_run.config(task__ways=6))
  (workdir / 'config.json').write_text(text)
  return workdir


def test_exported_is_read_back_without_optimiser_state(shipped):
  again = checkpoint.load(shipped)
  assert again.step == 3 and again.opt_state == []
  assert again.metrics == {'loss': 1.0}
  jax.tree.map(np.testing.assert_array_equal, again.params, saved(0).params)
  assert checkpoint.fingerprint(again) == checkpoint.fingerprint(saved(0))
  other = saved(0)
  other.params['encoder']['kernel'][0, 0] = 1.5
  assert checkpoint.fingerprint(again) != checkpoint.fingerprint(other)


def test_exported_tells_nothing_of_the_machine(shipped, tmp_path):
  for file in shipped.rglob('*'):
    assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes()


def test_export_replaces_nothing(shipped):
  with pytest.raises(UserError, match=f'{shipped} exists'):
    checkpoint.export(saved(None), shipped)


def test_without_flags_the_default_is_trained(called):
  name, config, _, workdir = called()
  assert (name, workdir) == ('train', 'runs/glyphs_5w1s')
  assert config_lib.to_json(config) == config_lib.to_json(
    config_lib.load(PRESET)
  )
  assert called('--tag=b')[3] == 'runs/glyphs_5w1s-b'


def test_fields_need_not_say_config(called):
  fields = '--task.ways=7', '--config.task.shots=2', '--seed=3'
  _, config, *_ = called(*fields)
  assert (config.task.ways, config.task.shots, config.seed) == (7, 2, 3)


def test_a_checkpoint_brings_its_config(called, shipped, run_of_six):
  name, config, source, workdir = called(
    '--mode=eval', f'--checkpoint={shipped}', '--eval.queries=9'
  )
  assert (name, source) == ('evaluate', str(shipped))
  assert (config.task.ways, config.eval.queries) == (4, 9)
  assert workdir == 'runs/four'
  _, config, source, workdir = called('--mode=eval', f'--workdir={run_of_six}')
  assert config.task.ways == 6
  assert source == workdir == str(run_of_six)


def test_a_workdir_given_as_checkpoint_keeps_its_results(called, run_of_six):
  inside = run_of_six / 'checkpoints' / 'best' / '3'
  for path in (run_of_six, inside):
    _, config, source, workdir = called('--mode=eval', f'--checkpoint={path}')
    assert (config.task.ways, source) == (6, str(path))
    assert workdir == str(run_of_six)


def test_a_config_that_is_named_goes_first(called, shipped):
  _, config, _, workdir = called(
    '--mode=eval', f'--config={PRESET}', f'--checkpoint={shipped}'
  )
  assert config.task.ways == 5
  assert workdir == 'runs/four'


def test_training_begins_with_a_checkpoint_elsewhere(called, run_of_six):
  _, config, _, workdir = called(f'--checkpoint={run_of_six}')
  assert config.train.init_from == str(run_of_six)
  assert workdir == 'runs/from-six'
  _, config, _, workdir = called(
    f'--config={PRESET}', f'--checkpoint={run_of_six}', '--workdir=w'
  )
  assert (config.train.init_from, workdir) == (str(run_of_six), 'w')


def test_a_run_not_begun_brings_nothing(called, tmp_path):
  text = config_lib.to_json(small_run.config(task__ways=6))
  (tmp_path / 'config.json').write_text(text)
  _, config, *_ = called(f'--workdir={tmp_path}')
  assert config.task.ways == 5


def test_grid_is_a_flag(called, shipped):
  name, config, *_ = called(
    '--mode=eval', f'--checkpoint={shipped}', '--eval.grid'
  )
  assert name == 'grid' and config.eval.grid


@pytest.mark.parametrize(
  'argv, message',
  [
    (['--mode=evl'], 'did you mean eval?'),
    (['--wrkdir=x'], 'unknown argument --wrkdir=x; did you mean --workdir'),
    (['--mode=demo', '--checkpoint=x'], 'demo takes no --checkpoint, only'),
    (['x'], "--mode=train takes no argument 'x'"),
    (['--evil.queries=3'], 'unknown argument --evil.queries=3'),
    (['--eval.querys=3'], 'did you mean eval.queries?'),
  ],
)
def test_slips_are_named(argv, message):
  with pytest.raises(UserError, match=message.replace('?', r'\?')):
    cli.run(argv)


def test_older_configs_mean_what_they_did():
  config = small_run.config()
  old = config.to_dict()
  for field in config_lib.ADDED_FIELDS:
    section, name = field.split('.')
    del old[section][name]
  again = config_lib.from_json(config_lib.to_json(type(config)(old)))
  config_lib.validate(again)
  fields = config_lib.flatten(again)
  for field, value in config_lib.ADDED_FIELDS.items():
    assert fields[field] == value


@pytest.fixture
def small(monkeypatch, tmp_path_factory):
  small_run.use(monkeypatch, tmp_path_factory.getbasetemp() / 'cache')


def test_begins_with_the_parameters_of_another_run(small, tmp_path):
  """Without a step of training they stay what they are."""
  config = small_run.config(train__num_epochs=1)
  assert train.train(config, tmp_path / 'first') == 0
  first = checkpoint.load(tmp_path / 'first')
  start = {'train__init_from': tmp_path / 'first', 'outer__lr': 0}
  assert (
    train.train(
      small_run.config(train__num_epochs=1, **start), tmp_path / 'second'
    )
    == 0
  )
  second = checkpoint.load(tmp_path / 'second')
  jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
  assert second.step == 5 and second.config.train.init_from


def test_begins_with_nothing_of_another_shape(small, tmp_path):
  config = small_run.config(train__num_epochs=1)
  assert train.train(config, tmp_path / 'first') == 0
  wide = small_run.dataset()._replace(images=small_run.dataset().images[:, ::2])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('maml_jax.data.load_dataset', lambda *_: wide)
    low = dataclasses.replace(data.spec('glyphs'), image_shape=(14, 28, 1))
    patch.setattr('maml_jax.data.spec', lambda name: low)
    with pytest.raises(UserError, match='encoder/kernel is .* where .* needed'):
      train.train(
        small_run.config(train__init_from=tmp_path / 'first'),
        tmp_path / 'second',
      )
