"""Configs and checkpoints of PyTorch-MAML, as they are here.

Two environment variables let more be compared: PYTORCH_MAML names a checkout of
it. Tests that write a .pth file need PyTorch in this interpreter.
"""

import json
import os
import pathlib
import pickle
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
  configs,
  from_torch,
  pth,
  runs,
  to_torch,
  yaml_section,
)
from maml_jax.pytorch_maml import weights as names
from maml_jax.pytorch_maml.__main__ import main
from maml_jax.train import init_state, resume_state
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
  """The texts of a train file and of a test file."""
  tasks = TASKS.format(normalization=False, transform='null', shots=shots)
  test = TEST.format(batches=150, queries=shots, tasks=tasks)
  return TRAIN.format(tasks=tasks) + REPRODUCE, test + REPRODUCE_TEST


def template(shots=1):
  """Likewise."""
  tasks = TASKS.format(normalization=True, transform='flip', shots=shots)
  test = TEST.format(batches=200, queries=15, tasks=tasks)
  test += INDUCTIVE_INNER + 'epoch: 10\n'
  return TRAIN.format(tasks=tasks) + TEMPLATE, test


def write(path, text):
  path.write_text(text)
  return str(path)


def content(text, tmp_path):
  """What YAML makes of a text."""
  return yaml_section.read_yaml(write(tmp_path / 'some.yaml', text))


def changed(tree, key, value):
  """A copy of nested dicts with 'a.b' set; removed if the value is `...`."""
  first, _, rest = key.partition('.')
  tree = dict(tree)
  if rest:
    tree[first] = changed(tree.get(first) or {}, rest, value)
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
def test_yaml_files_are_the_preset_field_by_field(
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
  assert config_lib.config_differences(preset, written) == []
  assert main(['config', files[0], *flags]) == 2
  assert 'File exists' in capsys.readouterr().err
  assert main(['config', files[0]]) == 0
  assert 'def get_config():' in capsys.readouterr().out


def test_preset_of_any_config_brings_it_back(tmp_path):
  norm = (*((f'conv{i}', 'episodic') for i in range(1, 4)), ('*', 'global'))
  frozen = tuple(f'encoder/conv{i}/conv/kernel' for i in range(1, 5))
  made = config(
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
  path.write_text(configs.preset_source(made, source, source))
  written = config_lib.load(str(path))
  assert config_lib.config_differences(made, written) == []


@pytest.mark.skipif(not CHECKOUT, reason='PYTORCH_MAML names no checkout')
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


def test_absent_keys_mean_what_they_mean_there(tmp_path):
  text = """
    dataset: meta-cub200
    train:
    encoder: resnet12
    encoder_args: {bn_args: {}}
    optimizer: rmsprop
    optimizer_args: {lr: 1e-2, schedule: cosine}
    epoch: 7
  """
  config, notes = configs.convert_config(content(text, tmp_path))
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
  default = config_lib.load(str(configs.DEFAULT))
  default.update_from_flattened_dict(expected)
  assert config_lib.config_differences(config, default) == []
  assert len(notes) == 1 and 'val is missing' in notes[0]


@pytest.mark.parametrize(
  'key, value, field, expected, note',
  [
    ('inner_args.n_step', 0, 'inner.num_steps', 5, 'takes 5'),
    ('inner_args.encoder_lr', 0, 'inner.encoder_lr', 0.01, 'takes 0.01'),
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
      'nb freezes nothing',
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
      'no layer is called conv5',
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
    ('encoder', 'resnet18', 'model.encoder', 'resnet10', 'cannot run'),
    ('encoder', 'wide-resnet12', 'model.encoder', 'wide_resnet12', None),
    ('_parallel', True, 'train.meta_batch_size', 4, 'all devices are used'),
    ('visdom', True, 'train.meta_batch_size', 4, 'TensorBoard'),
    ('train.root_path', '/x', 'data.root', '', 'maml_jax.data'),
    (
      'load',
      'x.pth',
      'train.meta_batch_size',
      4,
      'compat checkpoint converts it',
    ),
    ('optimizer_args.milestones', [3, 5], 'outer.schedule', 'step', None),
  ],
)
def test_key(tmp_path, key, value, field, expected, note):
  given = changed(content(reproduce()[0], tmp_path), key, value)
  if key == 'encoder':
    given = changed(given, 'inner_args.frozen', [])
  config, notes = configs.convert_config(given)
  assert config_lib.flatten(config)[field] == expected
  assert len(notes) == (note is not None)
  assert note is None or note in notes[0]


def test_frozen_substrings_freeze_what_they_froze(tmp_path):
  """'bn' there also catches bn1 and the shortcut's of a residual network."""
  given = changed(content(reproduce()[0], tmp_path), 'encoder', 'resnet12')
  config, _ = configs.convert_config(given)
  learner = setup.phase_learner(config, setup.train_phase(config))
  params, _ = jax.eval_shape(learner.init, jax.random.key(0))
  assert config.inner.frozen == ('bn*',)
  labels = names.flatten(param_labels(config.inner, params))
  frozen = {path for path, label in labels.items() if label == 'frozen'}
  assert frozen == {p for p in labels if 'bn' in names.torch_name(p)}
  assert len(frozen) == 2 * 4 * 4


@pytest.mark.parametrize(
  'key, value, message',
  [
    ('dataset', ..., 'dataset is missing'),
    ('dataset', 'mini-imagenet', 'did you mean meta-mini-imagenet?'),
    ('encoder', 'resnet-12', 'did you mean resnet12?'),
    ('encoder', None, 'encoder: None: no str'),
    ('classifier', 'nn', 'classifier=nn: unknown; there are: logistic'),
    ('optimizer', 'adamw', 'did you mean adam?'),
    ('optimizer_args.lr', ..., 'optimizer_args.lr is missing'),
    ('optimizer_args.lr', 'fast', "'fast': no float"),
    ('optimizer_args.nesterov', True, 'optimizer_args.nesterov: unknown key'),
    ('optimizer_args', [1], '[1]: no dict'),
    ('epoch', ..., 'epoch is missing'),
    ('epoch', '300', "'300': no int"),
    ('epoch', True, 'True: no int'),
    ('inner_args.n_steps', 5, 'unknown key; did you mean n_step?'),
    ('inner_args.frozen', 'bn', "'bn': no list"),
    ('inner_args.frozen', [3], '3: no str'),
    ('train.n_query', 0, 'config.task.queries=0: at least 1'),
    ('train.image_size', 80, '80: here they are 84 pixels wide'),
    ('train.split', 'meta-val', "split: 'val': here it is train"),
    ('train.transform', 'rotate', 'unknown; there are: resize, crop'),
    ('val.n_way', 20, 'val: 20: ways is 5 in training'),
    ('val.normalization', True, 'normalize is False in training'),
    ('val.val_transform', 'flip', 'queries stay as they are here'),
    ('encoder_args.bn_args', {'momentum': 0.2}, 'here it is 0.1'),
    ('encoder_args.bn_args', {'momentum': None}, 'need all layers'),
    ('encoder_args.bn_args', {'alpha': True}, 'need all layers'),
    ('encoder_args.bn_args.affine', False, 'a scale and a bias are learned'),
    ('encoder_args.width', 8, 'encoder_args.width: unknown key'),
    ('colour', 1, 'colour: unknown key'),
  ],
)
def test_what_has_no_equivalent_is_one_clear_line(
  tmp_path, key, value, message
):
  given = changed(content(reproduce()[0], tmp_path), key, value)
  with pytest.raises(UserError) as caught:
    configs.convert_config(given, file='x.yaml')
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'key, value, message',
  [
    ('dataset', 'meta-cub200', 'trained on mini_imagenet'),
    ('inner_args.momentum', 0.9, 'momentum is 0.0 in training'),
    ('inner_args.frozen', ..., "frozen is ('bn',) in training"),
    ('test.normalization', True, 'normalize is False in training'),
    ('test.n_way', 10, 'config.eval.ways=10: a learned head'),
    ('epoch', ..., 'epoch is missing'),
  ],
)
def test_an_evaluation_that_differs_is_refused(tmp_path, key, value, message):
  train, test = (content(text, tmp_path) for text in reproduce())
  with pytest.raises(UserError) as caught:
    configs.convert_config(train, changed(test, key, value))
  assert message in str(caught.value)


def test_which_checkpoint_a_test_file_measures(tmp_path):
  train, test = (content(text, tmp_path) for text in reproduce())
  config, _ = configs.convert_config(
    train, changed(test, 'load', 'a/epoch-last.pth')
  )
  assert config.eval.checkpoint == 'latest'


@pytest.mark.parametrize(
  'text, message',
  [
    ('a: !!python/object/apply:os.system ["true"]', 'line 1: no plain YAML'),
    ('a: 1\nb: !mine 3', 'line 2: no plain YAML: could not determine a con'),
    ('a: [', 'no plain YAML'),
    ('a: &x [1]\nb: {*x : 1}', 'no plain YAML'),
    ('[' * 1500, 'no plain YAML'),
    ('\x00', 'no plain YAML'),
    ('- 1', '[1] is not a mapping'),
    ('', 'None is not a mapping'),
  ],
)
def test_yaml_that_is_not_plain_is_refused(tmp_path, capsys, text, message):
  assert main(['config', write(tmp_path / 'x.yaml', text)]) == 2
  error = capsys.readouterr().err
  assert error.startswith(f'error: {tmp_path / "x.yaml"}') and message in error
  assert error.count('\n') == 1


def test_a_file_that_is_not_there(tmp_path, capsys):
  assert main(['config', str(tmp_path / 'x.yaml')]) == 2
  assert 'No such file' in capsys.readouterr().err
  assert main(['checkpoint', str(tmp_path / 'x.pth')]) == 2
  assert 'no file' in capsys.readouterr().err
  assert main(['checkpoint', str(tmp_path)]) == 2
  assert 'is a directory: --to FILE.pth' in capsys.readouterr().err


# Weights


def config(**fields):
  result = config_lib.load(str(configs.DEFAULT))
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
    'cumulative',
    (('conv4', 'episodic'), ('layer4', 'episodic'), ('*', 'global')),
  ],
  ids=lambda norm: norm if isinstance(norm, str) else 'mixed',
)
@pytest.mark.parametrize('encoder', names.ENCODERS.values())
def test_round_trip_is_bit_equal(encoder, norm):
  made = config(model__encoder=encoder, model__norm=norm, task__ways=3)
  params, stats = names.abstract_variables(made)
  params = random_like(params)
  stats = {
    key: jax.tree.map(jnp.zeros_like, tree)
    if key == 'episode'
    else random_like(tree, 1)
    for key, tree in stats.items()
  }
  there = to_torch(params, stats, made)
  again, moments = from_torch(there, made)
  assert_equal(again, params)
  assert_equal(moments.get('global'), stats.get('global'))
  assert_equal(to_torch(again, moments, made), there)
  for path, x in names.flatten(moments.get('episode', {})).items():
    assert (x == (path[-1] == 'var')).all(), path
  assert all(
    names.our_path(names.torch_name(path)) == path
    for path in names.flatten(params)
  )


@pytest.mark.parametrize('name', GOLDEN)
def test_names_and_shapes_are_those_recorded_there(name):
  case = GOLDEN[name]['case']
  made, _ = runs.config_of(pth_content(case), name)
  params, stats = random_like(names.abstract_variables(made))
  shapes = GOLDEN[name]['expect']['parameter_shapes']
  there = to_torch(params, stats, made)
  left = {
    n: x.shape
    for n, x in there.items()
    if not names.UNUSED_BUFFERS.fullmatch(n)
  }
  assert left == {n: tuple(shape) for n, shape in shapes.items()}
  buffers = there.keys() - left.keys()
  assert bool(buffers) == (made.model.norm != 'batch')
  again = names.bn_args(made)
  bn_args = case['model']['bn_args']
  assert again['track_running_stats'] == bn_args['track_running_stats']
  assert again.get('episodic', []) == bn_args.get('episodic', [])


def test_the_head_is_flattened_channel_by_channel_there():
  x = np.arange(2 * 3 * 4).reshape(2, 12)  # 2 ways; 3 channels of 4 pixels
  ours = names.our_layout(x, 3)
  for way, channel, pixel in np.ndindex(2, 3, 4):
    assert ours[pixel * 3 + channel, way] == x[way, channel * 4 + pixel]


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'model__encoder': 'resnet18'}, 'has no resnet18 as here'),
    ({'model__width': 48}, 'has no convnet4 of width 48'),
    ({'model__norm': 'support'}, 'has no config.model.norm=support'),
    ({'model__norm': (('conv1', 'batch'), ('*', 'global'))}, 'has no config'),
    ({'model__norm_scale': False}, 'has no config.model.norm_scale=false'),
    ({'data__name': 'omniglot'}, 'has no omniglot: not in colour'),
  ],
)
def test_a_model_that_is_not_there_is_named(fields, message):
  made = config(**fields)
  with pytest.raises(UserError, match=message):
    to_torch(*random_like(names.abstract_variables(made)), made)
  with pytest.raises(UserError, match=message):
    from_torch({}, made)


def without(*dropped):
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
      f'of another shape: {CONV} [32, 3, 5, 5] for [32, 3, 3, 3]',
    ),
    (
      lambda tree: tree | {CONV: tree[CONV].astype(int)},
      f'not of floating point: {CONV}',
    ),
    (lambda tree: {}, 'and 15 more'),
  ],
)
def test_tensors_that_do_not_fit_are_named_in_one_line(change, message):
  made = config()
  tree = to_torch(*random_like(names.abstract_variables(made)), made)
  with pytest.raises(UserError) as caught:
    from_torch(change(tree), made)
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)


# Checkpoints


def pth_content(case, **training):
  """What a checkpoint file of a golden case holds, tensors as arrays."""
  model, episodes = case['model'], case['episodes']
  shapes = GOLDEN[case['name']]['expect']['parameter_shapes']
  temperature = model['classifier_args'].get('temp', 1.0)
  tensors = {
    name: np.float32(golden.value(name, shape, model['seed'], temperature))
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
  told = {
    'encoder': model['encoder'],
    'encoder_args': {'bn_args': model['bn_args'] | {'n_episode': 4}},
    'classifier': 'logistic',
    'classifier_args': model['classifier_args'] | {'n_way': tasks['n_way']},
  }
  args = {'lr': 0.001}
  recorded = {
    'dataset': 'meta-cifar-fs' if small else 'meta-mini-imagenet',
    'train': tasks | {'normalization': False, 'n_batch': 200},
    'inner_args': case['inner'],
    'optimizer': 'adam',
    'optimizer_args': args,
    'epoch': 300,
  }
  return {
    'file': 'train.py',
    'config': recorded | told,
    **told,
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


def read_without_pytorch(monkeypatch, given):
  """Lets a file be read without PyTorch, as `given`."""
  monkeypatch.setattr(pth, 'load', lambda path: given)


def adam_state(given, step=600):
  """The state of Adam there: moments told by the place of a parameter."""
  tensors = [
    *given['encoder_state_dict'].values(),
    *given['classifier_state_dict'].values(),
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


def check_golden(name, workdir):
  """Compares logits under a converted checkpoint with those recorded there."""
  case, expect = GOLDEN[name]['case'], GOLDEN[name]['expect']
  made = config_lib.load(str(workdir / 'config.py'))
  is_test = not case['meta_train']
  phase = (setup.val_phase if is_test else setup.train_phase)(made)
  learner = setup.phase_learner(made, phase)
  saved = checkpoint.load(workdir)
  params, stats = transfer.transfer_params(learner, saved.params, saved.stats)
  with jax.enable_x64(True):
    params, stats = jax.tree.map(jnp.float64, (params, stats))

    @jax.jit
    def predict(params, stats, episode):
      adapted, after, _ = learner.adapt(params, stats, episode.support)
      return learner.predict(adapted, after, episode.query.inputs)

    episodes = golden.episodes(case, 0)
    for i, expected in enumerate(expect['logits']):
      episode = jax.tree.map(lambda x, i=i: x[i], episodes)
      logits, expected = predict(params, stats, episode), np.array(expected)
      scale = np.maximum(1, np.abs(expected))
      np.testing.assert_array_less(np.abs(logits - expected), 1e-5 * scale)


@pytest.mark.parametrize('name', CASES)
def test_converted_checkpoint_gives_the_logits_recorded_there(
  tmp_path, monkeypatch, capsys, name
):
  given = pth_content(GOLDEN[name]['case'])
  given['training']['optimizer_state_dict'] = adam_state(given)
  read_without_pytorch(monkeypatch, given)
  workdir = tmp_path / 'run'
  assert main(['checkpoint', 'x.pth', '--output', str(workdir)]) == 0
  assert f'step 600, in {workdir}' in capsys.readouterr().out
  check_golden(name, workdir)
  assert main(['checkpoint', 'x.pth', '--output', str(workdir)]) == 2
  assert 'holds checkpoints already' in capsys.readouterr().err


def test_training_goes_on_from_a_converted_checkpoint(tmp_path):
  """Step, schedule, best so far, and the moments of Adam, each in its place."""
  given = pth_content(GOLDEN['convnet4_learned_temperature']['case'])
  given['training']['optimizer_state_dict'] = adam_state(given)
  run = runs.from_checkpoint(given)
  assert 'anew' not in ''.join(run.notes)
  runs.write(run, tmp_path)
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
  order = [*given['encoder_state_dict'], *given['classifier_state_dict']]
  i = order.index('encoder.conv2.conv.weight')
  there = adam_state(given)['state'][i]['exp_avg'].transpose(2, 3, 1, 0)
  np.testing.assert_array_equal(mu['encoder']['conv2']['conv']['kernel'], there)
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
def test_an_optimiser_that_begins_anew_is_said_to(training):
  case = GOLDEN['convnet4_learned_temperature']['case']
  run = runs.from_checkpoint(pth_content(case, **training))
  assert 'the outer optimiser begins anew' in run.notes[-1]
  get = optax.tree_utils.tree_get_all_with_path
  counts = [int(x) for _, x in get(run.state.opt_state, 'count')]
  assert counts == [0, int(run.state.step)]


def test_a_given_config_decides(tmp_path, monkeypatch, capsys):
  given = pth_content(GOLDEN['convnet4_transductive_frozen_bn']['case'])
  del given['config']
  read_without_pytorch(monkeypatch, given)
  output = ['--output', str(tmp_path / 'run')]
  assert main(['checkpoint', 'x.pth', *output]) == 2
  assert 'does not tell its config: give --config' in capsys.readouterr().err
  preset = str(REPOSITORY / 'configs' / 'mini_5w1s.py')
  assert main(['checkpoint', 'x.pth', *output, '--config', preset]) == 0
  saved = checkpoint.load(tmp_path / 'run')
  assert (
    config_lib.config_differences(saved.config, config_lib.load(preset)) == []
  )
  inductive = str(REPOSITORY / 'configs' / 'omniglot_5w1s.py')
  assert main(['checkpoint', 'x.pth', '--config', inductive]) == 2
  assert 'x.pth: PyTorch-MAML has no omniglot' in capsys.readouterr().err


@pytest.mark.parametrize(
  'given, message',
  [
    ({}, 'no encoder_state_dict'),
    (
      {'encoder_state_dict': {}, 'classifier_state_dict': 3},
      'no classifier_state_dict',
    ),
    (
      {'encoder_state_dict': {}, 'classifier_state_dict': {}, 'config': 3},
      'does not tell its config',
    ),
    (
      {'encoder_state_dict': {}, 'classifier_state_dict': {}, 'config': {}},
      'dataset is missing; or give --config',
    ),
    (
      {'encoder_state_dict': {}, 'classifier_state_dict': {}, 'maml_jax': {}},
      'its maml_jax is damaged',
    ),
  ],
)
def test_what_is_no_checkpoint_is_said_in_one_line(given, message):
  with pytest.raises(UserError) as caught:
    runs.from_checkpoint(given)
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)


def test_numbers_that_are_not_finite_are_not_converted(tmp_path):
  given = pth_content(GOLDEN['convnet4_transductive_frozen_bn']['case'])
  given['encoder_state_dict']['encoder.conv1.conv.bias'][0] = np.nan
  with pytest.raises(UserError, match='not converted: .* not finite'):
    runs.write(runs.from_checkpoint(given), tmp_path)


def test_there_and_back_again_is_the_same_run(tmp_path, monkeypatch, capsys):
  given = pth_content(GOLDEN['convnet4_tasknorm']['case'])
  runs.write(runs.from_checkpoint(given), tmp_path / 'a')
  kept = {}
  monkeypatch.setattr(pth, 'save', kept.__setitem__)
  path = tmp_path / 'x.pth'
  assert main(['checkpoint', str(tmp_path / 'a'), '--to', str(path)]) == 0
  assert 'not the state of the outer optimiser' in capsys.readouterr().out
  back = kept[path]
  assert back['encoder_args']['bn_args']['n_episode'] == 1
  assert back['classifier_args']['in_dim'] == 800
  run = runs.from_checkpoint(back)
  first = runs.from_checkpoint(given)
  assert_equal(run.state.params, first.state.params)
  assert_equal(run.state.stats, first.state.stats)
  assert config_lib.config_differences(run.config, first.config) == []
  assert int(run.state.step) == 600
  path.touch()
  assert main(['checkpoint', str(tmp_path / 'a'), '--to', str(path)]) == 2
  assert 'exists already' in capsys.readouterr().err


# Files, without PyTorch and with it


def test_without_pytorch_one_line_says_what_to_install(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setitem(sys.modules, 'torch', None)
  path = write(tmp_path / 'x.pth', '')
  assert main(['checkpoint', path]) == 2
  error = capsys.readouterr().err
  assert "pip install 'torch>=2.6'" in error and error.count('\n') == 1


def test_a_pytorch_that_may_run_code_is_not_used(tmp_path, monkeypatch):
  old = types.SimpleNamespace(__version__='2.5.1+cpu')
  monkeypatch.setitem(sys.modules, 'torch', old)
  with pytest.raises(UserError, match='PyTorch 2.5.1.cpu may run code'):
    pth.load(write(tmp_path / 'x.pth', ''))


class Hostile:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def test_hostile_and_broken_files_are_refused_in_one_line(tmp_path, capsys):
  torch = pytest.importorskip('torch', reason='PyTorch is not installed')
  touched, path = tmp_path / 'touched', tmp_path / 'x.pth'
  torch.save({'encoder_state_dict': Hostile(touched)}, path)
  hostile = path.read_bytes()
  torch.save({'a': torch.zeros(1000)}, path)
  sound = path.read_bytes()
  for data, message in (
    (hostile, 'reading it could run code'),
    (pickle.dumps(Hostile(touched)), 'x.pth is damaged'),
    (pickle.dumps(Hostile(touched), 2), 'reading it could run code'),
    (sound[: len(sound) // 2], 'x.pth is damaged, or no PyTorch file'),
    (b'hello', 'x.pth is damaged, or no PyTorch file'),
    (b'', 'x.pth is damaged, or no PyTorch file'),
    (sound, 'no encoder_state_dict'),
  ):
    path.write_bytes(data)
    assert main(['checkpoint', str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error, error
    assert error.startswith('error: ') and error.count('\n') == 1
  assert not touched.exists()


def test_file_of_pytorch_is_read_and_written(tmp_path, capsys):
  torch = pytest.importorskip('torch', reason='PyTorch is not installed')
  name = 'convnet4_learned_temperature'
  given = pth_content(GOLDEN[name]['case'])
  places = [
    (f'{part}_state_dict', n)
    for part in runs.PARTS
    for n in given[f'{part}_state_dict']
  ]
  model = [torch.nn.Parameter(torch.tensor(given[k][n])) for k, n in places]
  optimizer = torch.optim.Adam(model, 1e-3)
  schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2], 0.1)
  for _ in range(2):
    for i, p in enumerate(model):
      p.grad = torch.tensor(random_like(p.detach().numpy(), i))
    optimizer.step()
  given['training'] |= {
    'epoch': 0,
    'optimizer_state_dict': optimizer.state_dict(),
    'lr_scheduler_state_dict': schedule.state_dict(),
  }
  for (key, n), p in zip(places, model, strict=True):
    given[key][n] = p.detach().clone()
  path = tmp_path / 'x.pth'
  torch.save(given, path)
  run = runs.from_checkpoint(pth.load(path))
  assert 'anew' not in ''.join(run.notes)

  # One step more, here and there.
  grads = [random_like(p.detach().numpy(), 9) for p in model]
  for p, grad in zip(model, grads, strict=True):
    p.grad = torch.tensor(grad)
  optimizer.step()
  order = [f'{key.removesuffix("_state_dict")}.{n}' for key, n in places]
  params = run.state.params
  here = names.params_from_names(dict(zip(order, grads, strict=True)), params)
  there = names.params_from_names(
    {n: p.detach().numpy() for n, p in zip(order, model, strict=True)}, params
  )
  tx = setup.make_outer_optimizer(run.config)
  updates, _ = tx.update(here, run.state.opt_state, params)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
    optax.apply_updates(params, updates),
    there,
  )

  workdir, back = tmp_path / 'run', tmp_path / 'back.pth'
  assert main(['checkpoint', str(path), '--output', str(workdir)]) == 0
  assert main(['checkpoint', str(workdir), '--to', str(back)]) == 0
  again = torch.load(back)
  for key in ('encoder_state_dict', 'classifier_state_dict'):
    expected = dict(given[key])
    assert again[key].keys() == expected.keys()
    assert all(torch.equal(again[key][n], x) for n, x in expected.items())


# Runs beside PyTorch-MAML: makes its model, or loads it from a file, and writes
# the file and its logits on an episode.
BESIDE = """
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
  made = case['content']
  model = models.make(made['encoder'], made['encoder_args'], 'logistic',
                      made['classifier_args'])
  made['encoder_state_dict'] = model.encoder.state_dict()
  made['classifier_state_dict'] = model.classifier.state_dict()
  torch.save(made, folder + '/theirs.pth')
model.double().eval()
logits = model(*(torch.from_numpy(x[k]) for k in ('support', 'query', 'label')),
               case['inner'], meta_train=False)
np.save(folder + '/logits.npy', logits.detach().numpy())
"""


@pytest.mark.skipif(not CHECKOUT, reason='PYTORCH_MAML names no checkout')
@pytest.mark.parametrize('texts', [reproduce, template])
def test_logits_are_those_of_a_checkout_there_and_back(tmp_path, texts):
  pytest.importorskip('torch', reason='PyTorch is not installed')
  told = content(texts()[0], tmp_path)
  told['encoder_args']['bn_args']['n_episode'] = 1
  told['classifier_args'] = {'n_way': 5}
  inner = {
    'reset_classifier': False,
    'momentum': 0.0,
    'weight_decay': 0.0,
    'first_order': False,
    'frozen': [],
    **told['inner_args'],
  }
  inner['reset_classifier'] = told['inner_args']['reset_classifier'] = False
  made = {key: told[key] for key in runs.MODEL} | {'config': told}
  rng = np.random.default_rng(0)
  support, query = rng.random((1, 5, 3, 84, 84)), rng.random((1, 10, 3, 84, 84))
  label = np.arange(5)[None]
  np.savez(tmp_path / 'episode.npz', support=support, query=query, label=label)

  def logits_there(load):
    case = {'content': made, 'inner': inner, 'load': load}
    (tmp_path / 'case.json').write_text(json.dumps(case))
    command = [sys.executable, '-c', BESIDE, CHECKOUT, str(tmp_path)]
    subprocess.run(command, check=True, env={'CUDA_VISIBLE_DEVICES': ''})
    return np.load(tmp_path / 'logits.npy')[0]

  there = logits_there(load=False)
  workdir = tmp_path / 'run'
  path = str(tmp_path / 'theirs.pth')
  assert main(['checkpoint', path, '--output', str(workdir)]) == 0
  made_here = config_lib.load(str(workdir / 'config.py'))
  learner = setup.phase_learner(made_here, setup.val_phase(made_here))
  saved = checkpoint.load(workdir)
  params, stats = transfer.transfer_params(learner, saved.params, saved.stats)

  @jax.jit
  def predict(params, stats, support, query):
    batch = golden.Batch(support, jnp.arange(5))
    adapted, after, _ = learner.adapt(params, stats, batch)
    return learner.predict(adapted, after, query)

  with jax.enable_x64(True):  # in float32 noise grows to 1e-4 in five steps
    images = [jnp.array(x[0].transpose(0, 2, 3, 1)) for x in (support, query)]
    here = predict(*jax.tree.map(jnp.float64, (params, stats)), *images)
  np.testing.assert_allclose(here, there, rtol=0, atol=1e-5)
  ours = str(tmp_path / 'ours.pth')
  assert main(['checkpoint', str(workdir), '--to', ours]) == 0
  np.testing.assert_allclose(logits_there(load=True), there, rtol=0, atol=1e-6)
