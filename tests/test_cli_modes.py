"""Tests of flags that choose config, checkpoint and workdir."""

import dataclasses
import re
import shutil
from typing import NamedTuple

import jax
import numpy as np
import pytest
import small_run
from ml_collections import ConfigDict

from maml_jax import cli, cli_flags, data, train
from maml_jax import config as config_lib
from maml_jax.evaluation import evaluate, sweep
from maml_jax.experiment import checkpoint, setup
from maml_jax.utils.errors import UserError

PRESET = str(small_run.PRESET)


class Call(NamedTuple):
  """What a mode was called with."""

  mode: str
  config: ConfigDict
  source: str | None
  workdir: str


@pytest.fixture
def run_cli(monkeypatch, tmp_path):
  """A function that parses flags and returns the resulting `Call`."""
  calls, configured = [], []
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(setup, 'configure_jax', configured.append)
  monkeypatch.setattr(
    train,
    'train',
    lambda config, workdir: calls.append(Call('train', config, None, workdir)),
  )
  for module, name in ((evaluate, 'evaluate'), (sweep, 'evaluate_grid')):
    monkeypatch.setattr(
      module, name, lambda *args, name=name: calls.append(Call(name, *args))
    )

  def run(*argv):
    assert cli.run(argv) == 0
    assert configured[-1] is calls[-1].config
    return calls[-1]

  return run


def make_checkpoint(path, **fields):
  """Returns a checkpoint of a linear network."""
  params = {'encoder': {'kernel': np.ones((2, 2))}}
  return checkpoint.Checkpoint(
    path, small_run.config(**fields), 3, params, {}, [], {'loss': 1.0}
  )


@pytest.fixture
def exported(tmp_path):
  """The directory of a stand-alone checkpoint with 4 ways."""
  saved = make_checkpoint(None, task__ways=4)
  return checkpoint.export(saved, tmp_path / 'c' / 'four')


@pytest.fixture
def workdir(tmp_path):
  """A workdir with a checkpoint with 6 ways."""
  workdir = tmp_path / 'six'
  path = workdir / 'checkpoints' / 'best' / '3'
  checkpoint.export(make_checkpoint(None, task__ways=6), path)
  text = config_lib.to_json(small_run.config(task__ways=6))
  (workdir / 'config.json').write_text(text)
  return workdir


def test_exported_checkpoint_is_loaded_without_optimizer_state(exported):
  loaded, saved = checkpoint.load(exported), make_checkpoint(None)
  assert loaded.step == 3 and loaded.opt_state == []
  assert loaded.metrics == {'loss': 1.0}
  jax.tree.map(np.testing.assert_array_equal, loaded.params, saved.params)
  assert checkpoint.fingerprint(loaded) == checkpoint.fingerprint(saved)
  saved.params['encoder']['kernel'][0, 0] = 1.5
  assert checkpoint.fingerprint(loaded) != checkpoint.fingerprint(saved)


def test_exported_checkpoint_contains_no_paths(exported, tmp_path):
  for file in exported.rglob('*'):
    assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes()


def test_export_does_not_overwrite(exported):
  with pytest.raises(UserError, match=f'{exported} already exists'):
    checkpoint.export(make_checkpoint(None), exported)


def test_default_is_to_train_the_default_preset(run_cli):
  mode, config, _, workdir = run_cli()
  assert (mode, workdir) == ('train', 'runs/glyphs_5w1s')
  expected = config_lib.load(PRESET)
  assert config_lib.to_json(config) == config_lib.to_json(expected)
  assert run_cli('--tag=b').workdir == 'runs/glyphs_5w1s-b'


def test_preset_is_given_by_name_or_path(run_cli):
  for path in ('mini_5w1s', small_run.PRESET.with_name('mini_5w1s.py')):
    _, config, _, workdir = run_cli(f'--config={path}')
    assert config.data.name == 'mini_imagenet'
    assert workdir == 'runs/mini_5w1s'


def test_prefix_config_of_fields_is_optional(run_cli):
  flags = '--task.ways=7', '--config.task.shots=2', '--seed=3'
  config = run_cli(*flags).config
  assert (config.task.ways, config.task.shots, config.seed) == (7, 2, 3)


def test_config_of_checkpoint_or_workdir_is_the_default(
  run_cli, exported, workdir
):
  call = run_cli('--mode=eval', f'--checkpoint={exported}', '--eval.queries=9')
  assert (call.mode, call.source) == ('evaluate', str(exported))
  assert (call.config.task.ways, call.config.eval.queries) == (4, 9)
  assert call.workdir == 'runs/four'
  call = run_cli('--mode=eval', f'--workdir={workdir}')
  assert call.config.task.ways == 6
  assert call.source == call.workdir == str(workdir)


def test_results_of_a_checkpoint_are_not_saved_in_a_run_of_the_same_name(
  run_cli, exported, tmp_path
):
  argv = '--mode=eval', f'--checkpoint={exported}'
  (tmp_path / 'runs' / 'four').mkdir(parents=True)  # of an evaluation
  assert run_cli(*argv).workdir == 'runs/four'
  (tmp_path / 'runs' / 'four' / 'config.json').touch()
  assert run_cli(*argv).workdir == 'runs/eval-four'
  assert run_cli(*argv, '--workdir=runs/four').workdir == 'runs/four'


def test_home_directory_is_expanded_in_every_path(
  run_cli, exported, tmp_path, monkeypatch
):
  monkeypatch.setenv('HOME', str(tmp_path))
  call = run_cli('--mode=eval', '--checkpoint=~/c/four', '--workdir=~/out')
  assert (call.source, call.workdir) == (str(exported), f'{tmp_path}/out')
  assert call.config.task.ways == 4
  shutil.copy(PRESET, tmp_path / 'mine.py')
  assert run_cli('--config=~/mine.py').workdir == 'runs/mine'
  assert run_cli('--workdir=~nobody7/x').workdir == '~nobody7/x'
  assert run_cli('--workdir=./~').workdir == './~'
  argv = [
    'a',
    '--query',
    '~/q',
    'b~',
    '--support=~/s',
    '--output=~',
    '--model=~/m',
  ]
  flags, _ = cli_flags.parse(['--mode=adapt', *argv[:-1], '--checkpoint=~'])
  assert flags.query == [f'{tmp_path}/q', 'b~']
  paths = flags.support, flags.output, flags.checkpoint
  assert paths == (f'{tmp_path}/s', f'{tmp_path}', f'{tmp_path}')
  flags, _ = cli_flags.parse(['--mode=predict', '~/p', '--model=~/m'])
  assert (flags.paths, flags.model) == ([f'{tmp_path}/p'], f'{tmp_path}/m')
  assert checkpoint.load('~/c/four').path == exported  # train.init_from
  assert data.prepared_dir('cub', '~/d').is_relative_to(tmp_path / 'd')


def test_results_of_a_checkpoint_in_a_workdir_are_saved_there(run_cli, workdir):
  for path in (workdir, workdir / 'checkpoints' / 'best' / '3'):
    call = run_cli('--mode=eval', f'--checkpoint={path}')
    assert (call.config.task.ways, call.source) == (6, str(path))
    assert call.workdir == str(workdir)


def test_given_config_overrides_that_of_the_checkpoint(run_cli, exported):
  call = run_cli(
    '--mode=eval', f'--config={PRESET}', f'--checkpoint={exported}'
  )
  assert call.config.task.ways == 5
  assert call.workdir == 'runs/four'


def test_training_from_a_checkpoint_uses_another_workdir(run_cli, workdir):
  call = run_cli(f'--checkpoint={workdir}')
  assert call.config.train.init_from == str(workdir)
  assert call.workdir == 'runs/from-six'
  call = run_cli(f'--config={PRESET}', f'--checkpoint={workdir}', '--workdir=w')
  assert (call.config.train.init_from, call.workdir) == (str(workdir), 'w')


def test_config_of_workdir_without_checkpoint_is_ignored(run_cli, tmp_path):
  text = config_lib.to_json(small_run.config(task__ways=6))
  (tmp_path / 'config.json').write_text(text)
  assert run_cli(f'--workdir={tmp_path}').config.task.ways == 5


def test_eval_grid_flag_evaluates_a_grid(run_cli, exported):
  call = run_cli('--mode=eval', f'--checkpoint={exported}', '--eval.grid')
  assert call.mode == 'evaluate_grid' and call.config.eval.grid


@pytest.mark.parametrize(
  'argv, message',
  [
    (['--mode=evl'], 'did you mean eval?'),
    (['--wrkdir=x'], 'unknown argument --wrkdir=x; did you mean --workdir'),
    (
      ['--mode=demo', '--checkpoint=x'],
      '--mode=demo does not accept --checkpoint; it belongs to --mode=train '
      'or pretrain or eval or adapt',
    ),
    (['x'], "--mode=train does not accept argument 'x'"),
    (['--lr=0.1'], 'unknown argument --lr=0.1; did you mean --outer.lr?'),
    (['--ways', '3'], 'unknown argument --ways; did you mean --task.ways?'),
    (['--mode=eval', '--ways=3'], 'did you mean --eval.ways?'),
    (
      ['--mode=report', '--wrkdir=x'],
      'unknown argument --wrkdir=x; see --help',
    ),
    (['--task.ways', '3'], 'values follow an equals sign: --task.ways=VALUE'),
    (['--num_steps=3'], 'belongs to --mode=adapt, or use --inner.num_steps'),
    (['--evil.queries=3'], 'unknown argument --evil.queries=3'),
    (['--eval.querys=3'], 'did you mean eval.queries?'),
    (
      ['--train.num_tasks=8'],
      'no field config.train.num_tasks; it is now train.meta_batch_size',
    ),
  ],
)
def test_invalid_flags_are_explained(argv, message):
  with pytest.raises(UserError, match=re.escape(message)):
    cli.run(argv)


@pytest.fixture
def small(monkeypatch, tmp_path_factory):
  small_run.use(monkeypatch, tmp_path_factory.getbasetemp() / 'cache')


def test_init_from_starts_with_parameters_of_another_run(small, tmp_path):
  """With a learning rate of 0 they do not change."""
  config = small_run.config(train__num_epochs=1)
  assert train.train(config, tmp_path / 'first') == 0
  first = checkpoint.load(tmp_path / 'first')
  config = small_run.config(
    train__num_epochs=1, train__init_from=tmp_path / 'first', outer__lr=0
  )
  assert train.train(config, tmp_path / 'second') == 0
  second = checkpoint.load(tmp_path / 'second')
  jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
  assert second.step == 5 and second.config.train.init_from


def test_init_from_rejects_parameters_of_another_shape(small, tmp_path):
  config = small_run.config(train__num_epochs=1)
  assert train.train(config, tmp_path / 'first') == 0
  dataset = small_run.dataset()
  dataset = dataset._replace(images=dataset.images[:, ::2])
  spec = dataclasses.replace(data.spec('glyphs'), image_shape=(14, 28, 1))
  config = small_run.config(train__init_from=tmp_path / 'first')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('maml_jax.data.load_dataset', lambda *_: dataset)
    patch.setattr('maml_jax.data.spec', lambda name: spec)
    message = r'encoder/kernel has shape \(784, 8\) .* expected \(392, 8\)'
    with pytest.raises(UserError, match=message):
      train.train(config, tmp_path / 'second')
