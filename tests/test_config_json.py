"""Tests of configs as JSON, configs of earlier versions, and comparisons."""

import json
import pathlib

import pytest

from maml_jax import config as config_lib
from maml_jax import config_versions, default_config
from maml_jax.data.augment import AUGMENTATIONS

REPLACED = [(old, *new) for old, new in config_versions.REPLACED_FIELDS.items()]
REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def load(*overrides):
  """Returns the default config with overrides such as 'task.ways=3'."""
  overrides = [f'--config.{override}' for override in overrides]
  return config_lib.override(default_config.get_config(), overrides)


@pytest.mark.parametrize('name', config_lib.preset_names())
def test_json_round_trip_preserves_config(name):
  overrides = [
    "--config.eval.norm=(('conv4','support'),('*','global'))",
    '--config.outer.clip_value=inf',
  ]
  config = config_lib.load(name, overrides)
  reloaded = config_lib.from_json(config_lib.to_json(config))
  assert config_lib.flatten(reloaded) == config_lib.flatten(config)
  assert config_lib.to_json(reloaded) == config_lib.to_json(config)
  assert reloaded.is_locked
  config_lib.validate(reloaded)


def test_lists_are_converted_to_tuples():
  pairs = "[['conv4', 'support'], ['*', 'global']]"
  config = load(f'model.norm={pairs}')
  reloaded = config_lib.from_json(config_lib.to_json(config))
  assert config_lib.config_differences(config, reloaded) == []


def rename_fields_back(config):
  """Returns a config as a dict with the field names of earlier versions."""
  tree = config.to_dict()
  for old, new in config_versions.RENAMED_FIELDS.items():
    section, name = old.split('.')
    tree[section][name] = tree[section].pop(new.split('.')[1])
  return tree


def test_old_field_names_are_upgraded():
  fields = {
    'train.meta_batch_size': 3,
    'train.tasks_per_chunk': 1,
    'train.init_from': 'runs/a',
    'outer.clip_value': 2.5,
  }
  assert fields.keys() == set(config_versions.RENAMED_FIELDS.values())
  config = load(*(f'{field}={value}' for field, value in fields.items()))
  upgraded = config_lib.from_json(json.dumps(rename_fields_back(config)))
  config_lib.validate(upgraded)
  assert config_lib.flatten(upgraded) == config_lib.flatten(config)


@pytest.mark.parametrize(
  'old, new', list(config_versions.RENAMED_AUGMENTATIONS.items())
)
def test_old_augmentation_names_are_upgraded(old, new):
  assert new in AUGMENTATIONS
  tree = default_config.get_config().to_dict()
  fields = [
    (section, name)
    for section in ('data', 'val', 'eval')
    for name in ('augment_support', 'augment_query')
    if name in tree[section]
  ]
  assert len(fields) == 4
  for section, name in fields:
    tree[section][name] = old
  upgraded = config_lib.from_json(json.dumps(tree))
  config_lib.validate(upgraded)
  for section, name in fields:
    assert upgraded[section][name] == new


def test_added_fields_get_the_values_of_earlier_versions():
  tree = default_config.get_config().to_dict()
  defaults = config_lib.flatten(default_config.get_config())
  added = {field: defaults[field] for field in config_versions.ADDED_FIELDS}
  added |= config_versions.IMPLIED_VALUES
  for field in added:
    section, name = field.split('.')
    del tree[section][name]
  upgraded = config_lib.from_json(json.dumps(tree))
  config_lib.validate(upgraded)
  fields = config_lib.flatten(upgraded)
  for field, value in added.items():
    assert fields[field] == value


@pytest.mark.parametrize('old, new, values', REPLACED)
def test_replaced_fields_of_earlier_versions_are_mapped(old, new, values):
  (section, name), (new_section, new_name) = old.split('.'), new.split('.')
  for value, expected in values.items():
    tree = default_config.get_config().to_dict()
    del tree[new_section][new_name]
    tree[section][name] = value
    upgraded = config_lib.from_json(json.dumps(tree))
    config_lib.validate(upgraded)
    assert upgraded[new_section][new_name] == expected


def test_config_of_a_shipped_checkpoint_is_upgraded():
  file = REPOSITORY / 'checkpoints' / 'glyphs_5w1s' / 'meta' / 'metadata'
  text = json.loads(file.read_text())['config']
  expected = config_lib.load('glyphs_5w1s')
  tasks = expected.train.meta_batch_size
  assert json.loads(text)['train']['num_tasks'] == tasks
  upgraded = config_lib.from_json(text)
  config_lib.validate(upgraded)
  assert upgraded.train.meta_batch_size == tasks
  assert not config_lib.config_differences(
    upgraded, expected, ('eval.curve_tasks',)
  )


def test_config_differences_name_fields_and_values():
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


def test_config_differences_include_missing_fields():
  old, new = default_config.get_config(), default_config.get_config()
  with old.unlocked():
    del old.seed
  assert config_lib.config_differences(old, new) == ['seed: (none) -> 0']
