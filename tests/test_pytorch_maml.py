"""Conversion of configs and checkpoints of PyTorch-MAML.

Some tests compare with a checkout of PyTorch-MAML in $PYTORCH_MAML. Tests that
read or write .pth files need PyTorch. Both are skipped if missing.
"""

import json
import math
import os
import pathlib
import pickle
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_golden as golden

from maml_jax import config as config_lib
from maml_jax.experiment import checkpoint, setup, transfer
from maml_jax.inner_loop import param_labels
from maml_jax.pytorch_maml import (
  checkpoints,
  configs,
  from_torch,
  presets,
  pth,
  to_torch,
  weights,
  yaml_section,
)
from maml_jax.pytorch_maml.__main__ import main
from maml_jax.train import resume_state
from maml_jax.train_step import init_state
from maml_jax.utils.errors import UserError

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = {p.stem: json.loads(p.read_text()) for p in golden.CASES}
CHECKOUT = os.environ.get('PYTORCH_MAML')

TASKS = """
  image_size: 84
  normalization: {normalization}
  transform: {transform}
  n_episode: 4
  n_way: 5
  n_shot: {shots}
"""
TRAIN = """
dataset: meta-mini-imagenet
train:
  split: meta-train
  n_batch: 200
  n_query: 15{tasks}
val:
  split: meta-val
  n_batch: 200
  n_query: 15{tasks}
encoder: convnet4
classifier: logistic
"""
TEST = """
dataset: meta-mini-imagenet
load: ./save/x/max-va.pth
test:
  split: meta-test
  n_batch: {batches}
  n_query: {queries}{tasks}
"""
REPRODUCE = """
encoder_args: {bn_args: {track_running_stats: false}}
inner_args: {n_step: 5, encoder_lr: 0.01, classifier_lr: 0.01, frozen: [bn]}
optimizer: adam
optimizer_args: {lr: 0.001}
epoch: 300
"""
REPRODUCE_TEST = """
inner_args: {n_step: 10, encoder_lr: 0.01, classifier_lr: 0.01, frozen: [bn]}
epoch: 1
"""
INDUCTIVE_INNER = """
inner_args:
  reset_classifier: true
  n_step: 5
  encoder_lr: 0.01
  classifier_lr: 0.01
  momentum: 0.9
  weight_decay: 5.e-4
"""
TEMPLATE = (
  INDUCTIVE_INNER
  + """
encoder_args:
  bn_args:
    track_running_stats: true
    episodic: [conv1, conv2, conv3, conv4]
optimizer: sgd
optimizer_args:
  lr: 0.01
  weight_decay: 5e-4
  schedule: step
  milestones: [120, 140]
epoch: 150
"""
)


def reproduce(shots=1):
  """Returns the texts of a train file and of a test file."""
  tasks = TASKS.format(normalization=False, transform='null', shots=shots)
  test = TEST.format(batches=150, queries=shots, tasks=tasks)
  return TRAIN.format(tasks=tasks) + REPRODUCE, test + REPRODUCE_TEST


def template(shots=1):
  """Returns the texts of a train file and of a test file."""
  tasks = TASKS.format(normalization=True, transform='flip', shots=shots)
  test = TEST.format(batches=200, queries=15, tasks=tasks)
  test += INDUCTIVE_INNER + 'epoch: 10\n'
  return TRAIN.format(tasks=tasks) + TEMPLATE, test


def write(path, text):
  """Writes a file and returns its path as a string."""
  path.write_text(text)
  return str(path)


def parse_yaml(text, tmp_path):
  """Returns the content of a YAML text."""
  return yaml_section.read_yaml(write(tmp_path / 'some.yaml', text))


def set_key(tree, key, value):
  """Returns a copy of nested dicts with 'a.b' set, or removed if `...`."""
  first, _, rest = key.partition('.')
  tree = dict(tree)
  if rest:
    tree[first] = set_key(tree.get(first) or {}, rest, value)
  elif value is ...:
    tree.pop(first, None)
  else:
    tree[first] = value
  return tree


# Configs


@pytest.mark.parametrize(
  'texts, shots, name',
  [
    (reproduce, 1, 'mini_5w1s'),
    (reproduce, 5, 'mini_5w5s'),
    (template, 1, 'mini_5w1s_inductive'),
    (template, 5, 'mini_5w5s_inductive'),
  ],
)
def test_yaml_files_convert_to_the_shipped_presets(
  tmp_path, monkeypatch, capsys, texts, shots, name
):
  monkeypatch.chdir(REPOSITORY)
  train, test = texts(shots)
  files = (
    write(tmp_path / 'train.yaml', train),
    write(tmp_path / 'test.yaml', test),
  )
  output = tmp_path / f'{name}.py'
  flags = ['--test', files[1], '--output', str(output)]
  assert main(['config', files[0], *flags]) == 0
  assert capsys.readouterr().err == ''
  text = output.read_text()
  assert len(text.splitlines()) <= 25
  assert all(len(line) <= 80 for line in text.splitlines()[2:])
  preset = config_lib.load(str(REPOSITORY / 'configs' / f'{name}.py'))
  written = config_lib.load(str(output))
  epochs = ('train.num_epochs', 'train.steps_per_epoch')
  assert config_lib.config_differences(preset, written, epochs) == []
  assert math.prod(written.train[x.split('.')[1]] for x in epochs) == (
    math.prod(preset.train[x.split('.')[1]] for x in epochs)
  )
  assert main(['config', files[0], *flags]) == 2
  assert 'File exists' in capsys.readouterr().err
  assert main(['config', files[0]]) == 0
  assert 'def get_config():' in capsys.readouterr().out


def test_preset_source_restores_the_config(tmp_path):
  norm = (*((f'conv{i}', 'episodic') for i in range(1, 4)), ('*', 'global'))
  frozen = tuple(f'encoder/conv{i}/conv/kernel' for i in range(1, 5))
  config = make_config(
    seed=3,
    precision='bfloat16',
    data__root="/'a'\\b",
    task__shots=5,
    model__norm=norm,
    inner__frozen=frozen,
    inner__num_steps=7,
    outer__clip_value=float('inf'),
    val__num_steps=9,
    eval__norm='support',
    eval__shots=1,
  )
  source = 'x"""\nraise SystemExit\nx'
  path = tmp_path / 'x.py'
  path.write_text(presets.preset_source(config, source, source))
  written = config_lib.load(str(path))
  assert config_lib.config_differences(config, written) == []


@pytest.mark.skipif(not CHECKOUT, reason='$PYTORCH_MAML is not set')
def test_every_yaml_file_of_a_checkout_converts_and_loads(tmp_path, capsys):
  files = sorted(pathlib.Path(CHECKOUT, 'configs').rglob('*.yaml'))
  assert files
  for i, file in enumerate(files):
    output = tmp_path / f'{i}.py'
    assert main(['config', str(file), '--output', str(output)]) == 0
    config_lib.load(str(output))
    if file.name.startswith('train'):
      test = file.with_name(file.name.replace('train', 'test', 1))
      capsys.readouterr()
      assert main(['config', str(file), '--test', str(test)]) == 0
      assert capsys.readouterr().err == ''


def test_missing_keys_have_the_defaults_of_pytorch_maml(tmp_path):
  text = """
    dataset: meta-cub200
    train:
    encoder: resnet12
    encoder_args: {bn_args: {}}
    optimizer: rmsprop
    optimizer_args: {lr: 1e-2, schedule: cosine}
    epoch: 7
  """
  config, notes = configs.convert_config(parse_yaml(text, tmp_path))
  expected = {
    'data.name': 'cub',
    'data.normalize': True,
    'model.encoder': 'resnet12',
    'model.norm': 'global',
    'outer.optimizer': 'rmsprop',
    'outer.lr': 0.01,
    'train.num_epochs': 7,
    'train.steps_per_epoch': 200,
    'eval.norm': 'global',
  }
  default = config_lib.load('default')
  default.update_from_flattened_dict(expected)
  assert config_lib.config_differences(config, default) == []
  assert len(notes) == 1 and 'val is missing' in notes[0]


@pytest.mark.parametrize(
  'key, value, field, expected, note',
  [
    ('inner_args.n_step', 0, 'inner.num_steps', 5, 'uses 5'),
    ('inner_args.encoder_lr', 0, 'inner.encoder_lr', 0.01, 'uses 0.01'),
    ('inner_args.classifier_lr', 0.0, 'inner.classifier_lr', 0.01, 'is 0.0'),
    ('inner_args.momentum', 0, 'inner.momentum', 0.0, None),
    ('inner_args.n_step', None, 'inner.num_steps', 5, None),
    ('inner_args.frozen', None, 'inner.frozen', (), None),
    (
      'inner_args.frozen',
      ['conv1.conv'],
      'inner.frozen',
      ('conv1/conv',),
      None,
    ),
    ('inner_args.frozen', ['encoder'], 'inner.frozen', ('encoder',), None),
    (
      'inner_args.frozen',
      ['bn', 'nb'],
      'inner.frozen',
      ('bn',),
      'nb matches no parameter',
    ),
    (
      'encoder_args.bn_args',
      {'alpha': True},
      'model.norm',
      'tasknorm_global',
      None,
    ),
    (
      'encoder_args.bn_args',
      {'alpha': True, 'episodic': ['conv2', 'conv4']},
      'model.norm',
      (
        ('conv2', 'tasknorm'),
        ('conv4', 'tasknorm'),
        ('*', 'tasknorm_global'),
      ),
      None,
    ),
    ('inner_args.frozen', ['nv'], 'inner.frozen', ('*nv*',), None),
    (
      'inner_args.frozen',
      ['linear.w'],
      'inner.frozen',
      ('classifier/kernel',),
      None,
    ),
    (
      'encoder_args.bn_args',
      {'episodic': ['conv4']},
      'model.norm',
      (('conv4', 'episodic'), ('*', 'global')),
      None,
    ),
    (
      'encoder_args.bn_args',
      {'episodic': ['conv5']},
      'model.norm',
      'global',
      'there is no layer conv5',
    ),
    ('encoder_args.bn_args.alpha', True, 'model.norm', 'batch', None),
    (
      'classifier_args',
      {'temp': 3, 'learn_temp': True},
      'model.temperature',
      3.0,
      None,
    ),
    (
      'train.val_transform',
      'color',
      'data.augment_query',
      'color_jitter',
      None,
    ),
    ('train.n_batch', ..., 'train.steps_per_epoch', 200, None),
    ('encoder', 'resnet18', 'model.encoder', 'resnet10', 'PyTorch-MAML fails'),
    ('encoder', 'wide-resnet12', 'model.encoder', 'wide_resnet12', None),
    ('_parallel', True, 'train.meta_batch_size', 4, 'all devices are used'),
    ('visdom', True, 'train.meta_batch_size', 4, 'TensorBoard'),
    ('train.root_path', '/x', 'data.root', '', 'maml_jax.data'),
    (
      'load',
      'x.pth',
      'train.meta_batch_size',
      4,
      'maml_jax.pytorch_maml checkpoint',
    ),
    ('optimizer_args.milestones', [3, 5], 'outer.schedule', 'step', None),
  ],
)
def test_keys_convert_to_fields_and_notes(
  tmp_path, key, value, field, expected, note
):
  content = set_key(parse_yaml(reproduce()[0], tmp_path), key, value)
  if key == 'encoder':
    content = set_key(content, 'inner_args.frozen', [])
  config, notes = configs.convert_config(content)
  assert config_lib.flatten(config)[field] == expected
  assert len(notes) == (note is not None)
  assert note is None or note in notes[0]


def test_frozen_substrings_freeze_the_same_parameters(tmp_path):
  """In a residual network, 'bn' also matches bn1 and the shortcut's bn."""
  content = set_key(parse_yaml(reproduce()[0], tmp_path), 'encoder', 'resnet12')
  config, _ = configs.convert_config(content)
  learner = setup.phase_learner(config, setup.train_phase(config))
  params, _ = jax.eval_shape(learner.init, jax.random.key(0))
  assert config.inner.frozen == ('bn*',)
  labels = {
    tuple(path.split('/')): label
    for path, label in param_labels(config.inner, params).items()
  }
  frozen = {path for path, label in labels.items() if label == 'frozen'}
  assert frozen == {p for p in labels if 'bn' in weights.torch_name(p)}
  assert len(frozen) == 2 * 4 * 4


@pytest.mark.parametrize(
  'key, value, message',
  [
    ('dataset', ..., 'dataset is missing'),
    ('dataset', 'mini-imagenet', 'did you mean meta-mini-imagenet?'),
    ('encoder', 'resnet-12', 'did you mean resnet12?'),
    ('encoder', None, 'encoder: None: expected str'),
    ('classifier', 'nn', 'classifier=nn: unknown; choose from: logistic'),
    ('optimizer', 'adamw', 'did you mean adam?'),
    ('optimizer_args.lr', ..., 'optimizer_args.lr is missing'),
    ('optimizer_args.lr', 'fast', "'fast': expected float"),
    ('optimizer_args.nesterov', True, 'optimizer_args.nesterov: unknown key'),
    ('optimizer_args', [1], '[1]: expected dict'),
    ('epoch', ..., 'epoch is missing'),
    ('epoch', '300', "'300': expected int"),
    ('epoch', True, 'True: expected int'),
    ('inner_args.n_steps', 5, 'unknown key; did you mean n_step?'),
    ('inner_args.frozen', 'bn', "'bn': expected list"),
    ('inner_args.frozen', [3], '3: expected str'),
    ('train.n_query', 0, 'config.task.queries=0: must be at least 1'),
    ('train.image_size', 80, '80: must be 84 for mini_imagenet'),
    ('train.split', 'meta-val', "split: 'val': must be train"),
    ('train.transform', 'rotate', 'unknown; choose from: resize, crop'),
    ('val.n_way', 20, 'val: 20: ways must be 5, as in training'),
    ('val.normalization', True, 'normalize must be False, as in training'),
    ('val.val_transform', 'flip', 'augmented in training only'),
    ('encoder_args.bn_args', {'momentum': 0.2}, 'must be 0.1 or null'),
    ('encoder_args.bn_args', {'momentum': None}, 'requires all layers'),
    ('encoder_args.bn_args.affine', False, 'scale and bias are always learned'),
    ('encoder_args.width', 8, 'encoder_args.width: unknown key'),
    ('color', 1, 'color: unknown key'),
  ],
)
def test_keys_without_equivalent_raise_one_line_errors(
  tmp_path, key, value, message
):
  content = set_key(parse_yaml(reproduce()[0], tmp_path), key, value)
  with pytest.raises(UserError) as error:
    configs.convert_config(content, file='x.yaml')
  assert message in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'key, value, message',
  [
    ('dataset', 'meta-cub200', 'must be mini_imagenet'),
    ('inner_args.momentum', 0.9, 'momentum must be 0.0, as in training'),
    ('inner_args.frozen', ..., "frozen must be ('bn',), as in training"),
    ('test.normalization', True, 'normalize must be False, as in'),
    ('test.n_way', 10, 'config.eval.ways=10: a learned head'),
    ('epoch', ..., 'epoch is missing'),
  ],
)
def test_evaluation_that_differs_from_training_raises(
  tmp_path, key, value, message
):
  train, test = (parse_yaml(text, tmp_path) for text in reproduce())
  with pytest.raises(UserError) as error:
    configs.convert_config(train, set_key(test, key, value))
  assert message in str(error.value)


def test_test_file_selects_the_checkpoint_to_evaluate(tmp_path):
  train, test = (parse_yaml(text, tmp_path) for text in reproduce())
  config, _ = configs.convert_config(
    train, set_key(test, 'load', 'a/epoch-last.pth')
  )
  assert config.eval.checkpoint == 'latest'


@pytest.mark.parametrize(
  'text, message',
  [
    ('a: !!python/object/apply:os.system ["true"]', 'line 1: not plain YAML'),
    ('a: 1\nb: !mine 3', 'line 2: not plain YAML: could not determine'),
    ('a: [', 'not plain YAML'),
    ('a: &x [1]\nb: {*x : 1}', 'not plain YAML'),
    ('[' * 1500, 'not plain YAML'),
    ('\x00', 'not plain YAML'),
    ('- 1', '[1] is not a mapping'),
    ('', 'None is not a mapping'),
  ],
)
def test_yaml_with_tags_or_aliases_is_rejected(tmp_path, capsys, text, message):
  assert main(['config', write(tmp_path / 'x.yaml', text)]) == 2
  error = capsys.readouterr().err
  assert error.startswith(f'error: {tmp_path / "x.yaml"}') and message in error
  assert error.count('\n') == 1


def test_missing_file_or_directory_is_reported(tmp_path, capsys):
  assert main(['config', str(tmp_path / 'x.yaml')]) == 2
  assert 'No such file' in capsys.readouterr().err
  assert main(['checkpoint', str(tmp_path / 'x.pth')]) == 2
  assert 'no such file' in capsys.readouterr().err
  assert main(['checkpoint', str(tmp_path)]) == 2
  assert 'is a directory: add --to FILE.pth' in capsys.readouterr().err


# Weights


def make_config(**fields):
  """Returns a config; dots of a field are written as '__'."""
  result = config_lib.load('default')
  fields = {'data.name': 'mini_imagenet'} | {
    key.replace('__', '.'): value for key, value in fields.items()
  }
  result.update_from_flattened_dict(fields)
  return result


def random_like(tree, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), tree)


def assert_equal(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
  'norm',
  [
    'batch',
    'global',
    'episodic',
    'tasknorm',
    'tasknorm_global',
    'cumulative',
    (('conv2', 'tasknorm'), ('*', 'tasknorm_global')),
    (('conv4', 'episodic'), ('layer4', 'episodic'), ('*', 'global')),
  ],
  ids=lambda norm: norm if isinstance(norm, str) else 'mixed',
)
@pytest.mark.parametrize('encoder', weights.ENCODERS.values())
def test_weights_round_trip_is_bit_exact(encoder, norm):
  config = make_config(model__encoder=encoder, model__norm=norm, task__ways=3)
  params, stats = weights.abstract_variables(config)
  params = random_like(params)
  stats = {
    key: jax.tree.map(jnp.zeros_like, tree)
    if key == 'episode'
    else random_like(tree, 1)
    for key, tree in stats.items()
  }
  state_dict = to_torch(params, stats, config)
  restored, moments = from_torch(state_dict, config)
  assert_equal(restored, params)
  assert_equal(moments.get('global'), stats.get('global'))
  assert_equal(to_torch(restored, moments, config), state_dict)
  for path, x in weights.flatten(moments.get('episode', {})).items():
    assert (x == (path[-1] == 'var')).all(), path
  assert all(
    weights.jax_path(weights.torch_name(path)) == path
    for path in weights.flatten(params)
  )


@pytest.mark.parametrize('name', GOLDEN)
def test_names_and_shapes_equal_those_of_pytorch_maml(name):
  case = GOLDEN[name]['case']
  config, _ = checkpoints.embedded_config(pth_content(case), name)
  params, stats = random_like(weights.abstract_variables(config))
  shapes = GOLDEN[name]['expect']['parameter_shapes']
  state_dict = to_torch(params, stats, config)
  used = {
    n: x.shape
    for n, x in state_dict.items()
    if not weights.UNUSED_BUFFERS.fullmatch(n)
  }
  assert used == {n: tuple(shape) for n, shape in shapes.items()}
  buffers = state_dict.keys() - used.keys()
  assert bool(buffers) == (config.model.norm != 'batch')
  converted = weights.bn_args(config)
  bn_args = case['model']['bn_args']
  assert converted['track_running_stats'] == bn_args['track_running_stats']
  assert converted.get('episodic', []) == bn_args.get('episodic', [])


def test_jax_layout_reorders_the_inputs_of_the_head():
  x = np.arange(2 * 3 * 4).reshape(2, 12)  # 2 ways; 3 channels of 4 pixels
  converted = weights.jax_layout(x, 3)
  for way, channel, pixel in np.ndindex(2, 3, 4):
    assert converted[pixel * 3 + channel, way] == x[way, channel * 4 + pixel]


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'model__encoder': 'resnet18'}, 'has no equivalent of resnet18'),
    ({'model__width': 48}, 'has no equivalent of convnet4 of width 48'),
    ({'model__norm': 'support'}, 'does not support config.model.norm=support'),
    (
      {'model__norm': (('conv1', 'batch'), ('*', 'global'))},
      'does not support',
    ),
    ({'model__norm_scale': False}, 'does not support config.model.norm_scale'),
    ({'data__name': 'omniglot'}, 'does not support omniglot: .* not in color'),
  ],
)
def test_model_without_equivalent_raises(fields, message):
  config = make_config(**fields)
  with pytest.raises(UserError, match=message):
    to_torch(*random_like(weights.abstract_variables(config)), config)
  with pytest.raises(UserError, match=message):
    from_torch({}, config)


def without(*dropped):
  """Returns a function that removes keys of a dict."""
  return lambda tree: {n: x for n, x in tree.items() if n not in dropped}


CONV = 'encoder.encoder.conv1.conv.weight'


@pytest.mark.parametrize(
  'change, message',
  [
    (without(CONV), f'missing: {CONV}'),
    (
      lambda tree: tree | {'encoder.fc.weight': np.ones(3)},
      'unexpected: encoder.fc.weight',
    ),
    (
      lambda tree: tree | {CONV: np.ones((32, 3, 5, 5))},
      f'wrong shape: {CONV} [32, 3, 5, 5], expected [32, 3, 3, 3]',
    ),
    (
      lambda tree: tree | {CONV: tree[CONV].astype(int)},
      f'not floating point: {CONV}',
    ),
    (lambda tree: {}, 'and 15 more'),
  ],
)
def test_mismatched_tensors_are_listed_in_one_line(change, message):
  config = make_config()
  tree = to_torch(*random_like(weights.abstract_variables(config)), config)
  with pytest.raises(UserError) as error:
    from_torch(change(tree), config)
  assert message in str(error.value)
  assert '\n' not in str(error.value)


# Checkpoints


def pth_content(case, **training):
  """Returns the content of a .pth file for a golden case."""
  model, episodes = case['model'], case['episodes']
  shapes = GOLDEN[case['name']]['expect']['parameter_shapes']
  temperature = model['classifier_args'].get('temp', 1.0)
  tensors = {
    name: np.float32(
      golden.make_tensor(name, shape, model['seed'], temperature)
    )
    for name, shape in shapes.items()
  }

  def part(name):
    start = f'{name}.'
    return {
      n.removeprefix(start): x
      for n, x in tensors.items()
      if n.startswith(start)
    }

  small = episodes['image_size'] == 32
  keys = ('n_episode', 'n_way', 'n_shot', 'n_query', 'image_size')
  tasks = {key: episodes[key] for key in keys}
  model_fields = {
    'encoder': model['encoder'],
    'encoder_args': {'bn_args': model['bn_args'] | {'n_episode': 4}},
    'classifier': 'logistic',
    'classifier_args': model['classifier_args'] | {'n_way': tasks['n_way']},
  }
  args = {'lr': 0.001}
  config = {
    'dataset': 'meta-cifar-fs' if small else 'meta-mini-imagenet',
    'train': tasks | {'normalization': False, 'n_batch': 200},
    'inner_args': case['inner'],
    'optimizer': 'adam',
    'optimizer_args': args,
    'epoch': 300,
  }
  return {
    'file': 'train.py',
    'config': config | model_fields,
    **model_fields,
    'encoder_state_dict': part('encoder'),
    'classifier_state_dict': part('classifier'),
    'training': {
      'epoch': 3,
      'max_va': 0.25,
      'optimizer': 'adam',
      'optimizer_args': args,
      **training,
    },
  }


def patch_load(monkeypatch, content):
  """Makes `pth.load` return `content`, without PyTorch."""
  monkeypatch.setattr(pth, 'load', lambda path: content)


def adam_state(content, step=600):
  """Returns a state of PyTorch's Adam, different for each parameter."""
  tensors = [
    *content['encoder_state_dict'].values(),
    *content['classifier_state_dict'].values(),
  ]
  state = {
    i: {
      'step': np.float32(step),
      'exp_avg': random_like(x, i),
      'exp_avg_sq': random_like(x, i) ** 2,
    }
    for i, x in enumerate(tensors)
  }
  groups = [{'params': list(range(len(tensors)))}]
  return {'state': state, 'param_groups': groups}


CASES = ['convnet4_learned_temperature', 'convnet4_episodic_test']


def assert_golden_logits(name, workdir):
  """Compares the logits of a converted checkpoint with those of a case."""
  case, expect = GOLDEN[name]['case'], GOLDEN[name]['expect']
  config = config_lib.load(str(workdir / 'config.py'))
  is_test = not case['meta_train']
  phase = (setup.val_phase if is_test else setup.train_phase)(config)
  learner = setup.phase_learner(config, phase)
  saved = checkpoint.load(workdir)
  params, stats = transfer.transfer_params(learner, saved.params, saved.stats)
  with jax.enable_x64(True):
    params, stats = jax.tree.map(jnp.float64, (params, stats))

    @jax.jit
    def predict(params, stats, episode):
      adapted, after, _ = learner.adapt(params, stats, episode.support)
      return learner.predict(adapted, after, episode.query.inputs)

    episodes = golden.make_episodes(case, 0)
    for i, expected in enumerate(expect['logits']):
      episode = jax.tree.map(lambda x, i=i: x[i], episodes)
      logits, expected = predict(params, stats, episode), np.array(expected)
      scale = np.maximum(1, np.abs(expected))
      np.testing.assert_array_less(np.abs(logits - expected), 1e-5 * scale)


@pytest.mark.parametrize('name', CASES)
def test_converted_checkpoint_has_the_recorded_logits(
  tmp_path, monkeypatch, capsys, name
):
  content = pth_content(GOLDEN[name]['case'])
  content['training']['optimizer_state_dict'] = adam_state(content)
  patch_load(monkeypatch, content)
  workdir = tmp_path / 'run'
  assert main(['checkpoint', 'x.pth', '--output', str(workdir)]) == 0
  assert f'{workdir}: step 600' in capsys.readouterr().out
  assert_golden_logits(name, workdir)
  assert main(['checkpoint', 'x.pth', '--output', str(workdir)]) == 2
  assert 'already contains checkpoints' in capsys.readouterr().err


def test_converted_checkpoint_can_be_resumed(tmp_path):
  """Checks step, schedule, best metric and the moments of Adam."""
  content = pth_content(GOLDEN['convnet4_learned_temperature']['case'])
  content['training']['optimizer_state_dict'] = adam_state(content)
  run = checkpoints.convert_checkpoint(content)
  assert 'outer optimizer' not in ''.join(run.notes)
  checkpoints.write_run(run, tmp_path)
  saved = checkpoint.load(tmp_path, 'latest')
  learner = setup.phase_learner(run.config, setup.train_phase(run.config))
  tx = setup.make_outer_optimizer(run.config)
  fresh = jax.eval_shape(lambda: init_state(learner, tx, jax.random.key(0)))
  state = resume_state(fresh, saved)
  assert_equal(jax.tree.map(np.shape, state), jax.tree.map(np.shape, fresh))
  assert int(state.step) == 3 * 200
  get = optax.tree_utils.tree_get_all_with_path
  counts = [int(x) for _, x in get(state.opt_state, 'count')]
  assert counts == [600, 600]
  ((_, mu),) = get(state.opt_state, 'mu')
  ((_, nu),) = get(state.opt_state, 'nu')
  order = [*content['encoder_state_dict'], *content['classifier_state_dict']]
  i = order.index('encoder.conv2.conv.weight')
  exp_avg = adam_state(content)['state'][i]['exp_avg'].transpose(2, 3, 1, 0)
  conv2 = mu['encoder']['conv2']['conv']['kernel']
  np.testing.assert_array_equal(conv2, exp_avg)
  jax.tree.map(lambda m, v: np.testing.assert_array_equal(m**2, v), mu, nu)
  best = checkpoint.load(tmp_path, 'best')
  assert best.metrics == {'accuracy': 0.25}
  assert_equal(best.params, saved.params)


@pytest.mark.parametrize(
  'training',
  [
    {},
    {'optimizer': 'sgd'},
    {'optimizer_state_dict': {'state': {}, 'param_groups': [{'params': [0]}]}},
    {'optimizer_state_dict': [1, 2]},
    {'optimizer_state_dict': None, 'epoch': None, 'max_va': 'high'},
    {
      'optimizer_state_dict': {
        'param_groups': [{'params': range(19)}],
        'state': {0: {'step': float('inf')}},
      }
    },
    {
      'optimizer_state_dict': {
        'param_groups': [{'params': range(19)}],
        'state': {0: {'step': 1, 'exp_avg': 'x'}},
      }
    },
    {'epoch': float('inf'), 'max_va': float('nan')},
  ],
)
def test_mismatched_optimizer_state_is_reset_with_a_note(training):
  case = GOLDEN['convnet4_learned_temperature']['case']
  run = checkpoints.convert_checkpoint(pth_content(case, **training))
  assert 'the outer optimizer starts from its initial state' in run.notes[-1]
  get = optax.tree_utils.tree_get_all_with_path
  counts = [int(x) for _, x in get(run.state.opt_state, 'count')]
  assert counts == [0, int(run.state.step)]


def test_config_flag_replaces_the_config_of_the_file(
  tmp_path, monkeypatch, capsys
):
  content = pth_content(GOLDEN['convnet4_transductive_frozen_bn']['case'])
  del content['config']
  patch_load(monkeypatch, content)
  output = ['--output', str(tmp_path / 'run')]
  assert main(['checkpoint', 'x.pth', *output]) == 2
  assert 'contains no config: add --config' in capsys.readouterr().err
  preset = str(REPOSITORY / 'configs' / 'mini_5w1s.py')
  assert main(['checkpoint', 'x.pth', *output, '--config', preset]) == 0
  saved = checkpoint.load(tmp_path / 'run')
  assert (
    config_lib.config_differences(saved.config, config_lib.load(preset)) == []
  )
  inductive = str(REPOSITORY / 'configs' / 'omniglot_5w1s.py')
  assert main(['checkpoint', 'x.pth', '--config', inductive]) == 2
  assert (
    'x.pth: PyTorch-MAML does not support omniglot' in capsys.readouterr().err
  )


@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_state_dict_of_a_model_is_converted_with_a_config(
  tmp_path, monkeypatch, capsys, prefix
):
  content = pth_content(GOLDEN['convnet4_transductive_frozen_bn']['case'])
  bare = {
    f'{prefix}{part}.{name}': x
    for part in ('encoder', 'classifier')
    for name, x in content[f'{part}_state_dict'].items()
  }
  patch_load(monkeypatch, bare)
  workdir = tmp_path / 'my run'
  command = ['checkpoint', 'x.pth', f'--output={workdir}']
  assert main(command) == 2
  assert re.fullmatch(
    'error: x.pth is a state_dict without .*: add --config=NAME, .*\n',
    capsys.readouterr().err,
  )
  fields = ['--config=mini_5w1s', '--inner.num_steps=7']
  assert main([*command, *fields]) == 0
  assert f"'--workdir={workdir}'" in capsys.readouterr().out
  saved = checkpoint.load(workdir)
  config = config_lib.load('mini_5w1s', fields[1:])
  assert config_lib.config_differences(saved.config, config) == []
  assert config_lib.load(str(workdir / 'config.py')) == config
  expected = checkpoints.convert_checkpoint(content, config)
  assert_equal(saved.params, expected.state.params)
  with pytest.raises(SystemExit):  # fields without a config
    main([*command, fields[1]])


@pytest.mark.parametrize(
  'content, message',
  [
    ({}, 'no encoder_state_dict'),
    (
      {'encoder_state_dict': {}, 'classifier_state_dict': 3},
      'no classifier_state_dict',
    ),
    (
      {'encoder_state_dict': {}, 'classifier_state_dict': {}, 'config': 3},
      'contains no config',
    ),
    (
      {'encoder_state_dict': {}, 'classifier_state_dict': {}, 'config': {}},
      'dataset is missing; use --config to replace',
    ),
    (
      {'encoder_state_dict': {}, 'classifier_state_dict': {}, 'maml_jax': {}},
      'maml_jax is damaged',
    ),
  ],
)
def test_invalid_checkpoints_raise_one_line_errors(content, message):
  with pytest.raises(UserError) as error:
    checkpoints.convert_checkpoint(content)
  assert message in str(error.value)
  assert '\n' not in str(error.value)


def test_non_finite_weights_are_not_converted(tmp_path):
  content = pth_content(GOLDEN['convnet4_transductive_frozen_bn']['case'])
  content['encoder_state_dict']['encoder.conv1.conv.bias'][0] = np.nan
  with pytest.raises(UserError, match='conversion failed: .* not finite'):
    checkpoints.write_run(checkpoints.convert_checkpoint(content), tmp_path)


def test_exported_checkpoint_converts_back_to_the_same_run(
  tmp_path, monkeypatch, capsys
):
  content = pth_content(GOLDEN['convnet4_tasknorm']['case'])
  checkpoints.write_run(checkpoints.convert_checkpoint(content), tmp_path / 'a')
  written = {}
  monkeypatch.setattr(pth, 'save', written.__setitem__)
  path = tmp_path / 'x.pth'
  assert main(['checkpoint', str(tmp_path / 'a'), '--to', str(path)]) == 0
  assert 'without the state of the outer optimizer' in capsys.readouterr().out
  exported = written[path]
  assert exported['encoder_args']['bn_args']['n_episode'] == 1
  assert exported['classifier_args']['in_dim'] == 800
  run = checkpoints.convert_checkpoint(exported)
  first = checkpoints.convert_checkpoint(content)
  assert_equal(run.state.params, first.state.params)
  assert_equal(run.state.stats, first.state.stats)
  assert config_lib.config_differences(run.config, first.config) == []
  assert int(run.state.step) == 600
  path.touch()
  assert main(['checkpoint', str(tmp_path / 'a'), '--to', str(path)]) == 2
  assert 'already exists' in capsys.readouterr().err


# Reading and writing .pth files


def test_missing_pytorch_raises_one_line_error(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'torch', None)
  path = write(tmp_path / 'x.pth', '')
  assert main(['checkpoint', path]) == 2
  error = capsys.readouterr().err
  assert "pip install 'torch>=2.6'" in error and error.count('\n') == 1


def test_unsafe_pytorch_version_is_rejected(tmp_path, monkeypatch):
  old = types.SimpleNamespace(__version__='2.5.1+cpu')
  monkeypatch.setitem(sys.modules, 'torch', old)
  with pytest.raises(UserError, match='PyTorch 2.5.1.cpu may run code'):
    pth.load(write(tmp_path / 'x.pth', ''))


class Malicious:
  """Creates a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def test_malicious_and_damaged_files_raise_one_line_errors(tmp_path, capsys):
  torch = pytest.importorskip('torch', reason='PyTorch is not installed')
  touched, path = tmp_path / 'touched', tmp_path / 'x.pth'
  torch.save({'encoder_state_dict': Malicious(touched)}, path)
  malicious = path.read_bytes()
  torch.save({'a': torch.zeros(1000)}, path)
  valid = path.read_bytes()
  for data, message in (
    (malicious, 'loading it could run code'),
    (pickle.dumps(Malicious(touched)), 'x.pth is damaged'),
    (pickle.dumps(Malicious(touched), 2), 'loading it could run code'),
    (valid[: len(valid) // 2], 'x.pth is damaged or not a PyTorch file'),
    (b'hello', 'x.pth is damaged or not a PyTorch file'),
    (b'', 'x.pth is damaged or not a PyTorch file'),
    (valid, 'no encoder_state_dict'),
  ):
    path.write_bytes(data)
    assert main(['checkpoint', str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error, error
    assert error.startswith('error: ') and error.count('\n') == 1
  assert not touched.exists()


def test_pth_file_round_trip_and_next_optimizer_step(tmp_path, capsys):
  torch = pytest.importorskip('torch', reason='PyTorch is not installed')
  name = 'convnet4_learned_temperature'
  content = pth_content(GOLDEN[name]['case'])
  places = [
    (f'{part}_state_dict', n)
    for part in checkpoints.PARTS
    for n in content[f'{part}_state_dict']
  ]
  model = [torch.nn.Parameter(torch.tensor(content[k][n])) for k, n in places]
  optimizer = torch.optim.Adam(model, 1e-3)
  schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2], 0.1)
  for _ in range(2):
    for i, p in enumerate(model):
      p.grad = torch.tensor(random_like(p.detach().numpy(), i))
    optimizer.step()
  content['training'] |= {
    'epoch': 0,
    'optimizer_state_dict': optimizer.state_dict(),
    'lr_scheduler_state_dict': schedule.state_dict(),
  }
  for (key, n), p in zip(places, model, strict=True):
    content[key][n] = p.detach().clone()
  path = tmp_path / 'x.pth'
  torch.save(content, path)
  run = checkpoints.convert_checkpoint(pth.load(path))
  assert 'outer optimizer' not in ''.join(run.notes)

  # The next step of both optimizers.
  grads = [random_like(p.detach().numpy(), 9) for p in model]
  for p, grad in zip(model, grads, strict=True):
    p.grad = torch.tensor(grad)
  optimizer.step()
  order = [f'{key.removesuffix("_state_dict")}.{n}' for key, n in places]
  params = run.state.params
  grads = weights.params_from_names(
    dict(zip(order, grads, strict=True)), params
  )
  expected = weights.params_from_names(
    {n: p.detach().numpy() for n, p in zip(order, model, strict=True)}, params
  )
  tx = setup.make_outer_optimizer(run.config)
  updates, _ = tx.update(grads, run.state.opt_state, params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
    optax.apply_updates(params, updates),
    expected,
  )

  workdir, exported = tmp_path / 'run', tmp_path / 'exported.pth'
  assert main(['checkpoint', str(path), '--output', str(workdir)]) == 0
  assert main(['checkpoint', str(workdir), '--to', str(exported)]) == 0
  restored = torch.load(exported)
  for key in ('encoder_state_dict', 'classifier_state_dict'):
    expected = dict(content[key])
    assert restored[key].keys() == expected.keys()
    assert all(torch.equal(restored[key][n], x) for n, x in expected.items())


# A script that runs PyTorch-MAML: it creates and saves a model, or loads one
# from a file, and saves its logits on an episode.
PYTORCH_MAML_SCRIPT = """
import json, sys
import numpy as np, torch
checkout, folder = sys.argv[1:]
sys.path.insert(0, checkout)
import models
case = json.load(open(folder + '/case.json'))
x = dict(np.load(folder + '/episode.npz'))
if case['load']:
  model = models.load(torch.load(folder + '/ours.pth'), load_clf=True)
else:
  torch.manual_seed(3)
  content = case['content']
  model = models.make(content['encoder'], content['encoder_args'], 'logistic',
                      content['classifier_args'])
  content['encoder_state_dict'] = model.encoder.state_dict()
  content['classifier_state_dict'] = model.classifier.state_dict()
  torch.save(content, folder + '/theirs.pth')
model.double().eval()
logits = model(*(torch.from_numpy(x[k]) for k in ('support', 'query', 'label')),
               case['inner'], meta_train=False)
np.save(folder + '/logits.npy', logits.detach().numpy())
"""


@pytest.mark.skipif(not CHECKOUT, reason='$PYTORCH_MAML is not set')
@pytest.mark.parametrize('texts', [reproduce, template])
def test_logits_equal_those_of_a_checkout_in_both_directions(tmp_path, texts):
  pytest.importorskip('torch', reason='PyTorch is not installed')
  config = parse_yaml(texts()[0], tmp_path)
  config['encoder_args']['bn_args']['n_episode'] = 1
  config['classifier_args'] = {'n_way': 5}
  inner = {
    'reset_classifier': False,
    'momentum': 0.0,
    'weight_decay': 0.0,
    'first_order': False,
    'frozen': [],
    **config['inner_args'],
  }
  inner['reset_classifier'] = config['inner_args']['reset_classifier'] = False
  content = {key: config[key] for key in checkpoints.MODEL_KEYS}
  content['config'] = config
  rng = np.random.default_rng(0)
  support, query = rng.random((1, 5, 3, 84, 84)), rng.random((1, 10, 3, 84, 84))
  targets = np.arange(5)[None]
  np.savez(
    tmp_path / 'episode.npz', support=support, query=query, label=targets
  )

  def pytorch_maml_logits(load):
    case = {'content': content, 'inner': inner, 'load': load}
    (tmp_path / 'case.json').write_text(json.dumps(case))
    command = [
      sys.executable,
      '-c',
      PYTORCH_MAML_SCRIPT,
      CHECKOUT,
      str(tmp_path),
    ]
    subprocess.run(command, check=True, env={'CUDA_VISIBLE_DEVICES': ''})
    return np.load(tmp_path / 'logits.npy')[0]

  expected = pytorch_maml_logits(load=False)
  workdir = tmp_path / 'run'
  path = str(tmp_path / 'theirs.pth')
  assert main(['checkpoint', path, '--output', str(workdir)]) == 0
  converted_config = config_lib.load(str(workdir / 'config.py'))
  learner = setup.phase_learner(
    converted_config, setup.val_phase(converted_config)
  )
  saved = checkpoint.load(workdir)
  params, stats = transfer.transfer_params(learner, saved.params, saved.stats)

  @jax.jit
  def predict(params, stats, support, query):
    batch = golden.Batch(support, jnp.arange(5))
    adapted, after, _ = learner.adapt(params, stats, batch)
    return learner.predict(adapted, after, query)

  with jax.enable_x64(True):  # float32 errors grow to 1e-4 in five steps
    images = [jnp.array(x[0].transpose(0, 2, 3, 1)) for x in (support, query)]
    logits = predict(*jax.tree.map(jnp.float64, (params, stats)), *images)
  np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
  ours = str(tmp_path / 'ours.pth')
  assert main(['checkpoint', str(workdir), '--to', ours]) == 0
  np.testing.assert_allclose(
    pytorch_maml_logits(load=True), expected, rtol=0, atol=1e-6
  )
