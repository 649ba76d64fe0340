import ast
import pathlib
import re
import subprocess
import sys

import pytest

from configs import default
from maml_jax import config as config_lib
from maml_jax import data, models
from maml_jax.data.augment import AUGMENTATIONS
from maml_jax.experiment import optimizers, setup
from maml_jax.models import norm
from maml_jax.utils.errors import UserError

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
DEFAULT = REPOSITORY / 'configs' / 'default.py'
PRESETS = sorted(
  path for path in DEFAULT.parent.glob('[!_]*.py') if path != DEFAULT
)


def load(*overrides):
  return config_lib.load(
    str(DEFAULT), [f'--config.{override}' for override in overrides]
  )


@pytest.mark.parametrize('path', PRESETS, ids=lambda path: path.stem)
def test_preset_is_short_valid_and_says_what_to_expect(path):
  source = path.read_text()
  assert len(source.splitlines()) <= 20
  text = ast.get_docstring(ast.parse(source))
  command, *_ = text.splitlines()
  if path.stem != 'glyphs_5w1s':  # which is the default
    assert command.startswith(f'python main.py --config=configs/{path.name}')
  for word in ('Expected: ', 'Hardware: ', 'Time: '):
    assert word in text
  config = config_lib.load(str(path))
  assert config.is_locked
  if path.stem not in ('folder', 'sinusoid'):
    assert f'{config.task.ways}w{config.task.shots}s' in path.stem
  assert path.stem.startswith(config.data.name.split('_')[0])


def test_every_field_is_explained():
  lines = DEFAULT.read_text().splitlines()
  for i, line in enumerate(lines):
    if re.match(r'  [\w.]+ = ', line) and 'ConfigDict()' not in line:
      assert '  # ' in line or lines[i - 1].startswith('  # '), line


def test_choices_are_those_of_the_registries_and_stand_in_the_default():
  choices = config_lib.CHOICES
  assert set(config_lib.NORMS) == set(norm.MODES)
  assert set(choices['data.name']) == {*data.SPECS, *data.REGRESSIONS}
  assert set(choices['eval.split']) == set(data.SPLITS)
  for field in (
    'data.augment_support',
    'data.augment_query',
    'val.augment_support',
    'eval.augment_support',
  ):
    assert set(choices[field]) == set(AUGMENTATIONS)
  assert set(choices['model.encoder']) == set(models.ENCODERS)
  for init in choices['model.init']:
    models.make_model('convnet4', 5, (28, 28, 1), init=init)
  assert set(choices['precision']) == set(setup.PRECISIONS)
  assert set(choices['outer.optimizer']) == set(optimizers.OPTIMIZERS)
  assert set(choices['outer.schedule']) == set(optimizers.SCHEDULES)
  source = DEFAULT.read_text()
  for words in (*choices.values(), config_lib.NORMS):
    for word in words:
      assert re.search(rf'# .*\b{word}\b', source), word


def test_checked_fields_exist():
  fields = config_lib.flatten(default.get_config()).keys()
  assert config_lib.CHOICES.keys() <= fields
  assert config_lib.MINIMUM.keys() <= fields
  assert set(config_lib.POSITIVE) <= fields


@pytest.mark.parametrize(
  'override, value',
  [
    ('task.ways=7', 7),
    ('outer.lr=1e-2', 0.01),
    ('outer.lr=1', 1.0),
    ('outer.clip_value=inf', float('inf')),
    ('inner.num_steps=0', 0),
    ('inner.encoder_lr=0', 0.0),
    ('inner.first_order', True),
    ('inner.first_order=true', True),
    ('inner.first_order=False', False),
    ('inner.frozen=bn', ('bn',)),
    ('inner.frozen=bn,encoder/conv[12]', ('bn', 'encoder/conv[12]')),
    ("inner.frozen=('bn',)", ('bn',)),
    ('inner.frozen=', ()),
    ('outer.milestones=60,80', (60, 80)),
    ('outer.milestones=(60, 80)', (60, 80)),
    ('outer.milestones=60', (60,)),
    ('model.norm=global', 'global'),
    (
      "model.norm=(('conv4', 'support'), ('*', 'global'))",
      (('conv4', 'support'), ('*', 'global')),
    ),
    ('data.root=/a=b', '/a=b'),
  ],
)
def test_override(override, value):
  got = config_lib.flatten(load(override))[override.partition('=')[0]]
  assert (got, type(got)) == (value, type(value))


@pytest.mark.parametrize(
  'override, message',
  [
    (
      'inner.num_step=3',
      'no field config.inner.num_step; did you mean inner.num_steps?',
    ),
    ('inr.num_steps=3', 'did you mean inner.num_steps?'),
    ('ways=3', 'did you mean eval.ways or task.ways or val.ways?'),
    ('task.ways.more=3', 'did you mean task.ways?'),
    ('zzz=3', 'there are: data, eval, inner'),
    ('task.ways=five', 'config.task.ways=five: not an integer'),
    ('task.ways=3.5', 'not an integer'),
    ('task.ways', 'lacks a value'),
    ('outer.lr=fast', 'not a number'),
    ('inner.remat=maybe', 'not true or false'),
    ('task=3', 'config.task is a section: queries, shots, ways'),
    ('task.ways=1', 'at least 2'),
    ('seed=-1', 'at least 0'),
    ('outer.lr=nan', 'at least 0'),
    ('outer.lr=inf', 'at least 0'),
    ('outer.clip_value=0', 'must be above 0'),
    ('outer.clip_value=nan', 'must be above 0'),
    ('outer.milestones=a', "'a' is not an integer"),
    ('inner.frozen=1', '1 is not a word'),
    ('data.name=miniimagenet', 'did you mean mini_imagenet?'),
    ('data.name=', 'there are: glyphs, omniglot, mini_imagenet'),
    ('model.encoder=convnet', 'did you mean convnet4?'),
    ('model.encoder=resnet-12', 'did you mean resnet12?'),
    ('model.norm=globl', 'did you mean global?'),
    ('eval.norm=(("*", "globl"),)', 'did you mean global?'),
    ('model.norm=(1, 2)', 'neither a word nor (pattern, word) pairs'),
    ('model.norm=3', 'neither a word nor (pattern, word) pairs'),
    ('outer.optimizer=adm', 'did you mean adam?'),
    ('eval.split=tset', 'did you mean test?'),
    ('eval.ways=7', 'need config.inner.reset_classifier=true'),
    ('val.ways=7', 'need config.inner.reset_classifier=true'),
    ('task.ways=0', 'at least 1'),
    ('data.name=sinusoid', 'convnet4: not for regression'),
    ('data.placement=cpu', 'there are: auto, device, host'),
  ],
)
def test_slip_is_one_clear_line(override, message):
  with pytest.raises(UserError, match=re.escape(message)) as caught:
    load(override)
  assert '\n' not in str(caught.value)


def test_width_is_of_convnets():
  assert load('model.encoder=wide_convnet4', 'model.width=48')
  with pytest.raises(UserError, match='resnet12 has widths of its own'):
    load('model.encoder=resnet12', 'model.width=48')


def test_other_ways_are_fine_with_a_zero_head():
  assert load('eval.ways=20', 'inner.reset_classifier').eval.ways == 20


def test_evaluation_follows_training_unless_set():
  config = load('task.ways=7', 'model.norm=support', 'inner.num_steps=3')
  assert config.eval.ways == 7
  assert config.eval.norm == 'support'
  assert config.val.num_steps == config.eval.num_steps == 3
  config = load('eval.num_steps=10', 'eval.norm=global')
  assert config.inner.num_steps == config.val.num_steps == 5
  assert config.model.norm == 'batch'


def test_what_is_no_override_is_named():
  with pytest.raises(UserError, match='unknown argument --wrkdir=x'):
    config_lib.load(str(DEFAULT), ['--wrkdir=x'])


@pytest.mark.parametrize(
  'source, message',
  [
    ('config.inner.num_step = 3', 'line 4: Did you mean "num_steps"'),
    (
      'config.inner.zzz = 3',
      'line 4: Key "zzz" does not exist and cannot be '
      'added since the config is locked.',
    ),
    ("config.task.ways = 'five'", 'line 4: '),
    ('config.task.ways = 1', 'config.task.ways=1: at least 2'),
    ('config = 3', 'get_config() must return a ConfigDict'),
    ('config = (', 'was never closed'),
  ],
)
def test_slip_in_a_config_file_is_one_clear_line(tmp_path, source, message):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from configs import default\n'
    'def get_config():\n'
    '  config = default.get_config()\n'
    f'  {source}\n'
    '  return config\n'
  )
  with pytest.raises(UserError, match=re.escape(message)) as caught:
    config_lib.load(str(path))
  assert '\n' not in str(caught.value)


def test_config_from_nothing_is_told_where_to_begin(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from ml_collections import ConfigDict\n'
    'def get_config():\n'
    '  return ConfigDict({"seed": 0})\n'
  )
  with pytest.raises(UserError, match='has no data.*begin with .*default.py'):
    config_lib.load(str(path))


def test_lists_are_tuples():
  pairs = "[['conv4', 'support'], ['*', 'global']]"
  config = load(f'model.norm={pairs}')
  again = config_lib.from_json(config_lib.to_json(config))
  assert config_lib.config_differences(config, again) == []


def test_file_without_get_config(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('x = 1')
  with pytest.raises(UserError, match='must return a ConfigDict'):
    config_lib.load(str(path))


@pytest.mark.parametrize('path', ['configs/mini_5w1.py', 'mini_5w1s'])
def test_missing_file_names_the_nearest(path, monkeypatch):
  monkeypatch.chdir(REPOSITORY)
  with pytest.raises(UserError, match='did you mean configs/mini_5w1s.py?'):
    config_lib.load(path)


def test_missing_file_far_from_any(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match='no config file mine.py$'):
    config_lib.load('mine.py')


@pytest.mark.parametrize('path', PRESETS, ids=lambda path: path.stem)
def test_json_brings_back_the_same_config(path):
  overrides = [
    "--config.eval.norm=(('conv4','support'),('*','global'))",
    '--config.outer.clip_value=inf',
  ]
  config = config_lib.load(str(path), overrides)
  again = config_lib.from_json(config_lib.to_json(config))
  assert config_lib.flatten(again) == config_lib.flatten(config)
  assert config_lib.to_json(again) == config_lib.to_json(config)
  assert again.is_locked
  config_lib.validate(again)


def test_differences():
  old, new = load(), load('outer.lr=0.1', 'eval.queries=1', 'data.root=/x')
  assert config_lib.config_differences(old, old) == []
  assert config_lib.config_differences(old, new) == [
    'data.root:  -> /x',
    'eval.queries: 15 -> 1',
    'outer.lr: 0.001 -> 0.1',
  ]
  ignore = ('eval', 'data.root', 'outer.l')
  assert config_lib.config_differences(old, new, ignore) == [
    'outer.lr: 0.001 -> 0.1'
  ]


def test_differences_when_fields_come_and_go():
  old = default.get_config()
  with old.unlocked():
    del old.seed
  assert config_lib.config_differences(old, default.get_config()) == [
    'seed: (none) -> 0'
  ]


@pytest.mark.parametrize(
  'task, message',
  [
    ({'ways': 65, 'shots': 1, 'queries': 1}, 'has 64 classes'),
    ({'ways': 5, 'shots': 5, 'queries': 16}, 'has 20: at most 15 queries'),
    ({'ways': 5, 'shots': 30, 'queries': 1}, 'has 20: at most 0 queries'),
  ],
)
def test_task_that_a_split_cannot_give(task, message):
  size = [600] * 63 + [20]
  with pytest.raises(UserError, match=f'mini_imagenet train {message}'):
    config_lib.require_enough_images('mini_imagenet train', size, **task)
  config_lib.require_enough_images('x', size, ways=64, shots=5, queries=15)


def run_main(*argv):
  return subprocess.run(
    [sys.executable, str(REPOSITORY / 'main.py'), *argv],
    capture_output=True,
    text=True,
    cwd=REPOSITORY,
  )


@pytest.mark.parametrize(
  'argv',
  [
    ['--config.inner.num_step=3'],
    ['--config=configs/nope.py', '--config.task.ways=3'],
    ['--mode=evl'],
    ['--wrkdir=x'],
    ['--config'],
  ],
)
def test_main_complains_in_one_line(argv):
  done = run_main(*argv)
  assert done.returncode == 2
  assert done.stdout == ''
  assert re.fullmatch(r'error: .+\n', done.stderr)


def test_help_shows_modes_fields_and_presets():
  done = run_main('--help')
  assert done.returncode == 0
  for word in ('train', 'eval', 'demo', '--config.task.ways', '--workdir'):
    assert word in done.stdout


def test_main_is_short():
  assert len((REPOSITORY / 'main.py').read_text().splitlines()) <= 60
