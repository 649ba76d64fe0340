"""Tests of configs: presets, files, overrides and checks."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from maml_jax import config as config_lib
from maml_jax import config_checks, data, default_config, models
from maml_jax.data.augment import AUGMENTATIONS
from maml_jax.experiment import optimizers, setup
from maml_jax.methods import METHODS
from maml_jax.models import norm
from maml_jax.utils.errors import UserError

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / 'configs'
PRESETS = sorted(
  path for path in CONFIGS.glob('[!_]*.py') if path.stem != 'default'
)


def load(*overrides):
  """Returns the default config with overrides such as 'task.ways=3'."""
  overrides = [f'--config.{override}' for override in overrides]
  return config_lib.override(default_config.get_config(), overrides)


def default_source():
  return pathlib.Path(default_config.__file__).read_text()


@pytest.mark.parametrize('path', PRESETS, ids=lambda path: path.stem)
def test_preset_is_short_valid_and_documented(path):
  source = path.read_text()
  assert len(source.splitlines()) <= 20
  text = ast.get_docstring(ast.parse(source))
  command, *_ = text.splitlines()
  if path.stem != 'glyphs_5w1s':  # the default
    assert command.startswith(f'python main.py --config=configs/{path.name}')
  for part in ('Expected: ', 'Hardware: ', 'Time: '):
    assert part in ' '.join(text.split())
  config = config_lib.load(str(path))
  assert config.is_locked
  if path.stem in METHODS:
    assert config.data.name == 'mini_imagenet'
    assert (config.eval.ways, config.eval.shots) == (5, 1)
    return
  unnamed = ('folder', 'mini_pretrain', 'mini_proto_net', 'sinusoid')
  if path.stem not in unnamed:
    assert f'{config.task.ways}w{config.task.shots}s' in path.stem
  assert path.stem.startswith(config.data.name.split('_')[0])


def test_every_field_has_a_comment():
  lines = default_source().splitlines()
  for i, line in enumerate(lines):
    if re.match(r'  [\w.]+ = ', line) and 'ConfigDict()' not in line:
      assert '  # ' in line or lines[i - 1].startswith('  # '), line


def test_choices_equal_registries_and_are_documented():
  choices = config_checks.CHOICES
  assert set(config_checks.NORMS) == set(norm.MODES)
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
  source = default_source()
  for values in (*choices.values(), config_checks.NORMS):
    for value in values:
      assert re.search(rf'# .*\b{value}\b', source), value


def test_checked_fields_exist():
  fields = config_lib.flatten(default_config.get_config()).keys()
  assert config_checks.CHOICES.keys() <= fields
  assert config_checks.RANGES.keys() <= fields
  assert set(config_checks.POSITIVE) <= fields
  assert set(config_checks.NORM_FIELDS) <= fields


INVALID_VALUES = {
  bool: (1, 'true', None),
  int: (True, 1.0, '1', None),
  float: (True, '1.0', None),
  str: (1, ('a',), None),
  tuple: ('a', 1, None),
}


@pytest.mark.parametrize(
  'field',
  [
    field
    for field in config_lib.flatten(default_config.get_config())
    if field not in config_checks.NORM_FIELDS
  ],
)
def test_types_follow_from_defaults(field):
  tree = default_config.get_config().to_dict()
  *sections, name = field.split('.')
  section = tree[sections[0]] if sections else tree
  kind = type(section[name])
  for value in INVALID_VALUES[kind]:
    section[name] = value
    message = f'config.{field}={value}: not {config_checks.TYPE_NAMES[kind]}'
    with pytest.raises(UserError, match=re.escape(message)):
      config_lib.validate(ConfigDict(tree))


def test_missing_fields_are_named():
  tree = default_config.get_config().to_dict()
  del tree['seed'], tree['outer']['lr'], tree['eval']['norm']
  with pytest.raises(UserError, match='lacks eval.norm, outer.lr, seed: start'):
    config_lib.validate(ConfigDict(tree))


@pytest.mark.parametrize(
  'override, value',
  [
    ('task.ways=7', 7),
    ('outer.lr=1e-2', 0.01),
    ('outer.lr=1', 1.0),
    ('outer.clip_value=inf', float('inf')),
    ('inner.num_steps=0', 0),
    ('inner.encoder_lr=0', 0.0),
    ('inner.remat', True),
    ('inner.remat=true', True),
    ('inner.remat=False', False),
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
def test_override_sets_value_and_type(override, value):
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
    ('zzz=3', 'choose from: data, eval, inner'),
    ('task.ways=five', 'config.task.ways=five: not an integer'),
    ('task.ways=3.5', 'not an integer'),
    ('task.ways', 'needs a value: --config.task.ways=VALUE'),
    ('outer.lr=fast', 'not a number'),
    ('inner.remat=maybe', 'not true or false'),
    ('task=3', 'config.task is a section: queries, shots, ways'),
    ('task.ways=1', 'must be at least 2'),
    ('seed=-1', 'at least 0'),
    ('outer.lr=nan', 'at least 0'),
    ('outer.lr=inf', 'at least 0'),
    ('outer.clip_value=0', 'must be positive'),
    ('outer.clip_value=nan', 'must be positive'),
    ('outer.milestones=a', "'a' is not an integer"),
    ('inner.frozen=1', '1 is not a string'),
    ('data.name=miniimagenet', 'did you mean mini_imagenet?'),
    ('data.name=', 'choose from: glyphs, omniglot, mini_imagenet'),
    ('model.encoder=convnet', 'did you mean convnet4?'),
    ('model.encoder=resnet-12', 'did you mean resnet12?'),
    ('model.norm=globl', 'did you mean global?'),
    ('eval.norm=(("*", "globl"),)', 'did you mean global?'),
    ('model.norm=(1, 2)', 'neither a mode such as support nor pairs such as'),
    ('model.norm=3', 'neither a mode such as support nor pairs such as'),
    ('outer.optimizer=adm', 'did you mean adam?'),
    ('eval.split=tset', 'did you mean test?'),
    ('eval.ways=7', 'so use 5; other numbers of ways need config.inner.head='),
    ('eval.ways=7', 'need config.inner.head=zero or prototype from the start'),
    ('val.ways=7', 'need config.inner.head=zero'),
    ('task.ways=0', 'at least 1'),
    (
      'data.name=sinusoid',
      'config.model.encoder=convnet4: must be mlp, because '
      'data.name=sinusoid is regression',
    ),
    ('train.num_tasks=8', '; it is now train.meta_batch_size'),
    ('train.chunk=1', '; it is now train.tasks_per_chunk'),
    ('train.start=runs/a', '; it is now train.init_from'),
    ('outer.clip=1', '; it is now outer.clip_value'),
    ('data.augment_query=crop', 'it is now random_crop'),
    ('val.augment_support=resize', 'it is now random_resized_crop'),
    ('eval.augment_support=enlarge', 'it is now resize_center_crop'),
    ('innr.num_steps=3', 'did you mean inner.num_steps?'),
    ('data.placement=cpu', 'choose from: auto, device, host'),
  ],
)
def test_invalid_override_is_a_one_line_error(override, message):
  with pytest.raises(UserError, match=re.escape(message)) as caught:
    load(override)
  assert '\n' not in str(caught.value)


def test_width_of_resnets_is_fixed():
  assert load('model.encoder=wide_convnet4', 'model.width=48')
  with pytest.raises(UserError, match='the widths of resnet12 are fixed'):
    load('model.encoder=resnet12', 'model.width=48')


def test_other_ways_are_valid_with_reset_head():
  assert load('eval.ways=20', 'inner.head=zero').eval.ways == 20


def test_val_and_eval_default_to_training_values():
  config = load('task.ways=7', 'model.norm=support', 'inner.num_steps=3')
  assert config.eval.ways == 7
  assert config.eval.norm == 'support'
  assert config.val.num_steps == config.eval.num_steps == 3
  config = load('eval.num_steps=10', 'eval.norm=global')
  assert config.inner.num_steps == config.val.num_steps == 5
  assert config.model.norm == 'batch'


def test_unknown_argument_is_named():
  with pytest.raises(UserError, match='unknown argument --wrkdir=x'):
    config_lib.load('default', ['--wrkdir=x'])


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
    ('config.task.ways = 1', 'config.task.ways=1: must be at least 2'),
    (
      'config.outer.clip = 1.0',
      'config.outer.clip does not exist; it is now config.outer.clip_value',
    ),
    ('config = 3', 'must define get_config() that returns a ConfigDict'),
    ('config = (', 'was never closed'),
  ],
)
def test_error_in_config_file_is_one_line_with_its_place(
  tmp_path, source, message
):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from maml_jax import default_config\n'
    'def get_config():\n'
    '  config = default_config.get_config()\n'
    f'  {source}\n'
    '  return config\n'
  )
  with pytest.raises(UserError, match=re.escape(message)) as caught:
    config_lib.load(str(path))
  assert '\n' not in str(caught.value)


def test_error_in_incomplete_config_suggests_the_default(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text(
    'from ml_collections import ConfigDict\n'
    'def get_config():\n'
    '  return ConfigDict({"seed": 0})\n'
  )
  with pytest.raises(
    UserError, match='lacks data.*start from maml_jax.default_config'
  ):
    config_lib.load(str(path))


def test_file_without_get_config_is_rejected(tmp_path):
  path = tmp_path / 'mine.py'
  path.write_text('x = 1')
  with pytest.raises(UserError, match='returns a ConfigDict, got '):
    config_lib.load(str(path))


def test_preset_is_found_by_name_from_any_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  by_name = config_lib.load('mini_5w1s')
  by_path = config_lib.load(str(CONFIGS / 'mini_5w1s.py'))
  assert config_lib.to_json(by_name) == config_lib.to_json(by_path)
  preset = config_lib.load_preset('mini_5w1s')
  assert preset.is_locked
  assert config_lib.to_json(preset) == config_lib.to_json(by_path)


def test_preset_is_not_shadowed_by_a_file_of_its_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mini_5w1s').write_text('not a config')
  assert config_lib.load('mini_5w1s').data.name == 'mini_imagenet'
  assert config_lib.load('fc100_5w1s').data.name == 'fc100'


def test_missing_suffix_of_a_config_file_is_suggested(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine.py').write_text('')
  with pytest.raises(UserError, match='did you mean mine.py?'):
    config_lib.load('mine')
  with pytest.raises(UserError, match='no preset mine'):
    config_lib.load_preset('mine')


def test_preset_names_are_those_of_config_files():
  names = {path.stem for path in CONFIGS.glob('*.py')} - {'__init__'}
  assert config_lib.preset_names() == sorted(names)
  assert 'mini_5w1s' in names


@pytest.mark.parametrize(
  'path, suggestion',
  [
    ('configs/mini_5w1.py', 'configs/mini_5w1s.py'),
    ('mini_5w1', 'mini_5w1s'),
  ],
)
def test_missing_file_suggests_closest_name(path, suggestion, monkeypatch):
  monkeypatch.chdir(REPOSITORY)
  with pytest.raises(UserError, match=f'{path}; did you mean {suggestion}?'):
    config_lib.load(path)


def test_missing_file_without_close_name_lists_presets(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  message = 'no config file mine.py; choose from: alfa, anil, boil, '
  with pytest.raises(UserError, match=message):
    config_lib.load('mine.py')


@pytest.mark.parametrize(
  'task, message',
  [
    ({'ways': 65, 'shots': 1, 'queries': 1}, 'has 64 classes'),
    ({'ways': 5, 'shots': 5, 'queries': 16}, 'has 20: use at most 15 queries'),
    ({'ways': 5, 'shots': 30, 'queries': 1}, 'has 20: use at most 0 queries'),
  ],
)
def test_split_that_is_too_small_for_a_task_is_rejected(task, message):
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
def test_main_reports_errors_in_one_line(argv):
  done = run_main(*argv)
  assert done.returncode == 2
  assert done.stdout == ''
  assert re.fullmatch(r'error: .+\n', done.stderr)


def test_help_lists_modes_and_flags():
  done = run_main('--help')
  assert done.returncode == 0
  for text in ('train', 'eval', 'demo', '--config.task.ways', '--workdir'):
    assert text in done.stdout


def test_main_is_short():
  assert len((REPOSITORY / 'main.py').read_text().splitlines()) <= 60
