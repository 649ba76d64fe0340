"""Adaptation to a few images, compared with plain loops and closed forms."""

import copy
import datetime
import functools
import json
import os
import pathlib
import pickle
import subprocess
import sys

import image_folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run
from PIL import Image

import maml_jax
from maml_jax import config as config_lib
from maml_jax import data
from maml_jax.data import images as image_lib
from maml_jax.experiment import checkpoint, setup
from maml_jax.experiment.metrics import is_transductive
from maml_jax.fewshot import adaptation, classifier, heads
from maml_jax.learner import cross_entropy
from maml_jax.types import Batch
from maml_jax.utils.errors import NonFiniteError, UserError

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
LABELS = ['bar', 'bar', 'disc', 'frame', 'frame', 'frame']
SUPPORT = [
  np.asarray(image_folders.draw_picture(name, i))
  for i, name in enumerate(LABELS)
]
QUERIES = [
  np.asarray(image_folders.draw_picture(name, 50 + i))
  for i in range(7)
  for name in image_folders.CLASSES
]


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  return image_folders.make_checkpoint(
    tmp_path_factory.mktemp('few_shot') / 'checkpoint'
  )


@pytest.fixture(scope='module')
def few_shot(path):
  return maml_jax.load(path)


@pytest.fixture(scope='module')
def adapted(few_shot):
  return few_shot.fit(SUPPORT, LABELS, num_steps=1, head='checkpoint')


def as_inputs(pictures):
  """Returns the inputs of the model, float32 [N, 28, 28, 1] in 0..1."""
  spec = data.spec('glyphs')
  pixels = [image_lib.from_array(picture, spec) for picture in pictures]
  return jnp.asarray(np.stack(pixels), jnp.float32) / 255


def assert_close(a, b):
  np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_importing_the_package_does_not_import_jax():
  script = 'import sys, maml_jax; print("jax" in sys.modules, maml_jax.load)'
  process = subprocess.run(
    [sys.executable, '-c', script], check=True, text=True, capture_output=True
  )
  assert process.stdout.startswith('False <function load')


def test_load_returns_learner_params_and_stats(few_shot, path):
  learner, params, stats = few_shot[:3]
  saved = checkpoint.load(path)
  jax.tree.map(np.testing.assert_array_equal, params, saved.params)
  assert few_shot.config.to_dict() == saved.config.to_dict()
  image = few_shot.transform(SUPPORT)
  assert_close(image, as_inputs(SUPPORT))
  logits = learner.predict(params, stats, image)
  assert logits.shape == (6, 3)


def test_fit_is_gradient_descent_on_class_balanced_loss(few_shot, adapted):
  """Compares one step with explicit gradients."""
  model = setup.phase_model(few_shot.config, few_shot.phase)
  image, rows = as_inputs(SUPPORT), ([0, 1], [2], [3, 4, 5])

  @jax.jit
  def loss(params):
    logits, stats = model.apply(params, few_shot.stats, image, train=True)
    parts = [
      cross_entropy(logits[jnp.array(r)], jnp.full(len(r), c))
      for c, r in enumerate(rows)
    ]
    return sum(parts) / 3, stats

  rates, grads = (
    few_shot.config.inner,
    jax.grad(loss, has_aux=True)(few_shot.params)[0],
  )
  params = {
    group: jax.tree.map(
      lambda p, g, rate=rate: p - rate * g, few_shot.params[group], grads[group]
    )
    for group, rate in (
      ('encoder', rates.encoder_lr),
      ('classifier', rates.classifier_lr),
    )
  }
  jax.tree.map(assert_close, adapted.params, params)
  _, stats = loss(params)
  logits, _ = model.apply(params, stats, as_inputs(QUERIES), train=False)
  assert_close(adapted.predict_proba(QUERIES), jax.nn.softmax(logits))
  assert adapted.classes.tolist() == list(image_folders.CLASSES)
  best = [image_folders.CLASSES[i] for i in np.argmax(logits, -1)]
  assert adapted.predict(QUERIES).tolist() == best


def test_prediction_does_not_depend_on_other_images(adapted):
  """Bit-exact: alone, in several batches, and in any order."""
  assert len(QUERIES) > classifier.BATCH_SIZE
  together = adapted.predict_proba(QUERIES)
  np.testing.assert_allclose(together.sum(1), 1, rtol=1e-6)
  alone = np.concatenate([adapted.predict_proba([x]) for x in QUERIES])
  np.testing.assert_array_equal(alone, together)
  order = np.random.default_rng(0).permutation(len(QUERIES))
  permuted = adapted.predict_proba([QUERIES[i] for i in order])
  np.testing.assert_array_equal(permuted, together[order])
  assert adapted.predict_proba(np.zeros((0, 28, 28), np.uint8)).shape == (0, 3)


def test_norm_batch_is_transductive(path):
  few_shot = maml_jax.load(path, norm='batch')
  assert is_transductive(few_shot.phase.norm)
  adapted = few_shot.fit(SUPPORT, LABELS, num_steps=1)
  logits = adapted.learner.predict(
    adapted.params, adapted.stats, as_inputs(QUERIES)
  )
  assert_close(adapted.predict_proba(QUERIES), jax.nn.softmax(logits))
  alone = adapted.predict_proba(QUERIES[:1])
  assert np.abs(alone - adapted.predict_proba(QUERIES)[:1]).max() > 1e-3


def test_load_is_inductive_by_default(few_shot, tmp_path):
  assert (
    few_shot.config.eval.norm == 'batch' and few_shot.phase.norm == 'support'
  )
  norm = (('conv1', 'batch'), ('*', 'episodic'))
  path = image_folders.make_checkpoint(tmp_path / 'c', model__norm=norm)
  inductive = (('conv1', 'support'), ('*', 'episodic'))
  assert maml_jax.load(path).phase.norm == inductive


@functools.cache
def few_shot_of(*overrides):
  """Returns a checkpoint of 3 ways with random values of all quantities."""
  config = config_lib.override(small_run.config(), overrides)
  phase = setup.eval_phase(config)._replace(norm='support')
  learner = setup.phase_learner(config, phase)
  params, stats = learner.init(jax.random.key(0))
  r = np.random.RandomState(0)
  params = jax.tree.map(
    lambda x: x + 0.05 * jnp.float32(r.randn(*x.shape)), params
  )
  return adaptation.FewShotLearner(
    learner, params, stats, config, phase, None, None
  )


@pytest.mark.parametrize(
  'overrides, num_steps, head, steps',
  [
    ([], None, 'zero', adaptation.DEFAULT_NUM_STEPS),
    ([], 0, 'prototype', 0),
    (['--inner.head=zero'], None, 'zero', adaptation.DEFAULT_NUM_STEPS),
    (['--eval.num_steps=20'], None, 'zero', 20),
    (['--inner.classifier_lr=0'], 2, 'prototype', 2),
    (['--inner.frozen=classifier'], 2, 'prototype', 2),
    (['--inner.head=prototype', '--eval.num_steps=0'], None, 'prototype', 0),
    (['--inner.head=prototype'], 3, 'prototype', 3),
    (['--inner.learn_lr=tensor', '--eval.num_steps=2'], None, 'zero', 2),
    (['--inner.rule=alfa', '--inner.classifier_lr=0'], None, 'zero', 1),
  ],
  ids=str,
)
def test_default_head_and_steps_follow_from_the_method(
  overrides, num_steps, head, steps
):
  overrides = ('--eval.num_steps=1', *overrides)
  program = adaptation.make_adaptation_program(
    few_shot_of(*overrides), 2, num_steps
  )
  assert (program.head, program.phase.num_steps) == (head, steps)


FAMILY = {
  'maml': (),
  'meta_sgd': ('--inner.learn_lr=parameter', '--inner.per_step=lr'),
  'mamlpp': ('--inner.learn_lr=tensor', '--inner.per_step=lr,bn'),
  'meta_curvature': ('--inner.precondition=kronecker',),
  'alfa': ('--inner.rule=alfa', '--inner.weight_decay=0.1'),
  'proto_net': ('--inner.head=prototype', '--eval.num_steps=0'),
  'proto_maml': ('--inner.head=prototype', '--inner.optimizer=adam'),
  'boil': ('--inner.classifier_lr=0', '--inner.encoder_lr=0.01'),
  'cavia': (
    '--model.context_size=4',
    '--inner.frozen=!context',
    '--inner.zero=context',
  ),
}


@pytest.mark.slow
@pytest.mark.parametrize('ways', [2, 5])
@pytest.mark.parametrize('method', FAMILY)
def test_renamed_classes_get_the_same_answers_with_every_method(method, ways):
  overrides = ('--inner.frozen=bn', '--eval.num_steps=2', *FAMILY[method])
  few_shot = few_shot_of(*overrides)
  pictures = [SUPPORT[i % 6] for i in range(2 * ways)]
  pictures += [np.flip(SUPPORT[i % 6], 0) for i in range(ways)]
  labels = [i % ways for i in range(3 * ways)]
  renaming = np.random.RandomState(1).permutation(ways)
  plain = few_shot.fit(pictures, labels)
  renamed = few_shot.fit(pictures, [renaming[i] for i in labels])
  a, b = plain.predict_proba(QUERIES), renamed.predict_proba(QUERIES)
  assert_close(b[:, renaming], a)
  assert np.ptp(a) > 0.01


SHIPPED = [
  folder
  for folder in sorted((REPOSITORY / 'checkpoints').iterdir())
  if not folder.name.endswith('_run')
]


@pytest.mark.slow
@pytest.mark.parametrize('folder', SHIPPED, ids=lambda folder: folder.name)
def test_renamed_classes_get_the_same_answers_of_shipped_checkpoints(folder):
  few_shot = maml_jax.load(folder)
  for ways in (2, 5, 7):
    r = np.random.RandomState(ways)
    pictures = [
      np.asarray(image_folders.draw_picture(name, 7 * i))
      for i, name in enumerate(list(image_folders.CLASSES) * 5)
    ][: 2 * ways]
    labels = [i % ways for i in range(2 * ways)]
    plain = few_shot.fit(pictures, labels, num_steps=3)
    renaming = r.permutation(ways)
    names = [f'class {renaming[i]}' for i in labels]
    renamed = few_shot.fit(pictures, names, num_steps=3)
    a, b = (x.predict_proba(QUERIES) for x in (plain, renamed))
    assert_close(b[:, renaming], a)


@pytest.mark.parametrize('ways', [2, 4])
def test_prototype_head_is_nearest_centroid_classifier(few_shot, ways):
  """Compares with the softmax of negative scaled squared distances."""
  names = [f'{i % ways}' for i in range(6)]
  adapted = few_shot.fit(SUPPORT, names, head='prototype', num_steps=0)
  model = setup.phase_model(few_shot.config, few_shot.phase)
  params = few_shot.params
  support, stats = model.features(
    params, few_shot.stats, as_inputs(SUPPORT), train=True
  )
  query, _ = model.features(params, stats, as_inputs(QUERIES), train=False)
  support, query = np.float64(support), np.float64(query)
  means = [support[[n == f'{c}' for n in names]].mean(0) for c in range(ways)]
  pairs = [np.sum((a - b) ** 2) for a in means for b in means if a is not b]
  scale = heads.PROTOTYPE_SCALE / np.mean(pairs)
  distance = [[np.sum((x - mean) ** 2) for mean in means] for x in query]
  logits = -scale * np.array(distance)
  assert_close(adapted.predict_proba(QUERIES), jax.nn.softmax(logits))


def test_zero_head_is_uniform_and_checkpoint_head_takes_first_outputs(few_shot):
  zero = few_shot.fit(SUPPORT, LABELS, head='zero', num_steps=0)
  assert_close(zero.predict_proba(QUERIES), np.full((len(QUERIES), 3), 1 / 3))
  two = few_shot.fit(
    SUPPORT[:4], LABELS[:3] + ['bar'], head='checkpoint', num_steps=0
  )
  kernel = few_shot.params['classifier']['kernel']
  np.testing.assert_array_equal(
    two.params['classifier']['kernel'], kernel[:, :2]
  )


@pytest.mark.parametrize('num_steps', [0, 2])
def test_leave_one_out_equals_explicit_loop(few_shot, num_steps):
  names = ['bar', 'bar', 'disc', 'frame', 'disc', 'frame']
  program = adaptation.make_adaptation_program(few_shot, 3, num_steps)
  spec = data.spec('glyphs')
  pixels = np.stack([image_lib.from_array(x, spec) for x in SUPPORT])
  label = np.array([0, 0, 1, 2, 1, 2], np.int32)
  rows = [0, 3, 5]
  done = adaptation.leave_one_out(few_shot, program, pixels, label, rows)
  for row, probabilities in zip(rows, done, strict=True):
    others = [i for i in range(6) if i != row]
    one = few_shot.fit(
      [SUPPORT[i] for i in others],
      [names[i] for i in others],
      num_steps=num_steps,
    )
    assert_close(one.predict_proba([SUPPORT[row]])[0], probabilities)


def test_answers_after_each_step_are_those_of_a_shorter_fit(few_shot):
  program = adaptation.make_adaptation_program(few_shot, 3, num_steps=2)
  spec = data.spec('glyphs')
  pixels = np.stack([image_lib.from_array(x, spec) for x in SUPPORT + QUERIES])
  classes, labels = np.unique(LABELS, return_inverse=True)
  adapted, predict = adaptation.fit_each_step(
    few_shot, program, pixels[: len(LABELS)], labels.astype(np.int32), classes
  )
  by_step = predict(pixels[len(LABELS) :])
  assert len(by_step) == 3
  np.testing.assert_allclose(by_step[0], 1 / 3, rtol=1e-6)  # the zero head
  one_step = few_shot.fit(SUPPORT, LABELS, num_steps=1)
  assert_close(by_step[1], one_step.predict_proba(QUERIES))
  assert_close(by_step[2], adapted.predict_proba(QUERIES))


@pytest.mark.parametrize(
  'labels, kind',
  [(LABELS, str), ([3, 3, 5, 9, 9, 9], int), (list('aabccc'), str)],
)
def test_save_and_load_round_trip(few_shot, adapted, tmp_path, labels, kind):
  path = tmp_path / 'model.npz'
  path.write_text('an older file')
  saved = adapted._replace(classes=np.unique(labels))
  saved.save(path)
  loaded = maml_jax.load_classifier(path)
  assert loaded.predict(QUERIES).tolist() == saved.predict(QUERIES).tolist()
  assert isinstance(loaded.predict(QUERIES)[0].item(), kind)
  np.testing.assert_array_equal(
    loaded.predict_proba(QUERIES), saved.predict_proba(QUERIES)
  )
  assert [file.name for file in tmp_path.iterdir()] == ['model.npz']


def test_load_classifier_upgrades_older_configs(adapted, tmp_path):
  """Older files have other names of config fields and augmentations."""
  path = tmp_path / 'model.npz'
  adapted.save(path)
  with np.load(path) as npz:
    arrays = dict(npz)
  metadata = json.loads(str(arrays['facts']))
  config = json.loads(metadata['config'])
  train = config['train']
  train['num_tasks'] = train.pop('meta_batch_size')
  train['chunk'] = train.pop('tasks_per_chunk')
  train['start'] = train.pop('init_from')
  config['outer']['clip'] = config['outer'].pop('clip_value')
  config['data']['augment_support'] = 'crop'
  del config['eval']['grid']
  metadata['config'] = json.dumps(config)
  arrays['facts'] = np.array(json.dumps(metadata))
  np.savez(path, **arrays)
  loaded = maml_jax.load_classifier(path)
  assert loaded.config.data.augment_support == 'random_crop'
  assert loaded.config.train.to_dict() == adapted.config.train.to_dict()
  np.testing.assert_array_equal(
    loaded.predict_proba(QUERIES), adapted.predict_proba(QUERIES)
  )


def test_save_keeps_norms_of_layers_and_running_averages(tmp_path):
  norm = (('conv1', 'global'), ('*', 'cumulative'))
  path = image_folders.make_checkpoint(tmp_path / 'c', model__norm=norm)
  adapted = maml_jax.load(path).fit(SUPPORT, LABELS, num_steps=1)
  adapted.save(tmp_path / 'model.npz')
  loaded = maml_jax.load_classifier(tmp_path / 'model.npz')
  assert loaded.phase == adapted.phase
  jax.tree.map(np.testing.assert_array_equal, loaded.stats, adapted.stats)
  np.testing.assert_array_equal(
    loaded.predict_proba(QUERIES), adapted.predict_proba(QUERIES)
  )


@pytest.mark.parametrize(
  'images, labels, kwargs, message',
  [
    (SUPPORT, LABELS[1:], {}, 'got 6 images and 5 labels'),
    (SUPPORT, ['bar'] * 6, {}, 'expected two or more classes'),
    (np.zeros(5), [0, 1], {}, r'expected images \[N, H, W, C\]'),
    (SUPPORT[0], [0, 1], {}, 'one label per image, got 1 images and 2 labels'),
    (SUPPORT, 'abcdef', {}, "one label per image, got 'abcdef'"),
    (SUPPORT, np.array(3), {}, 'got 6 images and 1 labels'),
    (SUPPORT, LABELS, {'head': 'nero'}, 'did you mean zero?'),
    (
      SUPPORT,
      list('abcdef'),
      {'head': 'checkpoint'},
      '3 outputs are too few for 6 classes; use prototype or zero',
    ),
  ],
)
def test_fit_rejects_invalid_input(few_shot, images, labels, kwargs, message):
  with pytest.raises(UserError, match=message):
    few_shot.fit(images, labels, **kwargs)


@pytest.mark.parametrize(
  'labels, message',
  [
    ([None, 'a'] * 3, 'label None is a NoneType: expected strings'),
    ([b'a', b'b'] * 3, "label b'a' is a bytes: expected strings"),
    (np.array([b'a', b'b'] * 3), "label b'a' is a bytes"),
    (
      np.array(['2026-01-01', '2026-01-02'] * 3, 'datetime64[D]'),
      r'label datetime.date\(2026, 1, 1\) is a date',
    ),
    ([datetime.datetime(2026, 1, d) for d in range(1, 7)], 'is a datetime'),
    ([0.0, float('nan')] * 3, 'label nan is not finite'),
    (np.array([1, np.inf] * 3), 'label inf is not finite'),
    ([(0, 1), (1, 0)] * 3, 'label .* is a tuple'),
    (np.eye(6), 'label .* is a list'),
    ([1j, 2j] * 3, 'is a complex'),
    ([1, '1'] * 3, 'labels of different types: number, string'),
    ([True, 2] * 3, 'labels of different types: boolean, number'),
    ([10**30, 1] * 3, 'cannot store the labels exactly'),
    ([2**63 + 1, -1] * 3, 'cannot store the labels exactly'),
  ],
  ids=str,
)
def test_unsupported_labels_are_rejected_before_the_work(
  few_shot, labels, message, monkeypatch
):
  monkeypatch.setattr(adaptation, 'make_adaptation_program', None)
  with pytest.raises(UserError, match=message):
    few_shot.fit(SUPPORT, labels)


@pytest.mark.parametrize(
  'labels',
  [
    ['b', 'a'] * 3,
    [2, 1] * 3,
    [0.5, 1] * 3,
    [True, False] * 3,
    (np.str_('b'), 'a') * 3,
    np.array(['b', 'a'] * 3, object),
    np.array([7, 3] * 3, np.uint8),
    jnp.array([7, 3] * 3),
  ],
  ids=str,
)
def test_supported_labels_are_predicted_saved_and_pickled(
  few_shot, labels, tmp_path
):
  fitted = few_shot.fit(SUPPORT, labels, num_steps=1)
  assert fitted.classes.tolist() == sorted({*np.asarray(labels).tolist()})
  fitted.save(tmp_path / 'model.npz')
  copies = [
    maml_jax.load_classifier(tmp_path / 'model.npz'),
    pickle.loads(pickle.dumps(fitted)),
    copy.deepcopy(fitted),
  ]
  for other in copies:
    assert other.classes.tolist() == fitted.classes.tolist()
    np.testing.assert_array_equal(
      other.predict_proba(QUERIES), fitted.predict_proba(QUERIES)
    )
    assert other.config.to_dict() == fitted.config.to_dict()


def test_pickled_classifier_is_loaded_by_another_process(adapted, tmp_path):
  (tmp_path / 'pickle').write_bytes(pickle.dumps(adapted))
  np.save(tmp_path / 'images.npy', np.stack(QUERIES))
  script = (
    'import pickle, numpy as np; '
    "classifier = pickle.load(open('pickle', 'rb')); "
    "print(*classifier.predict(np.load('images.npy')))"
  )
  process = subprocess.run(
    [sys.executable, '-c', script],
    check=True,
    text=True,
    capture_output=True,
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(REPOSITORY)},
  )
  assert process.stdout.split() == adapted.predict(QUERIES).tolist()


def test_single_image_is_a_batch_of_one(adapted, tmp_path):
  color = np.random.RandomState(0).randint(0, 256, (84, 84, 3), np.uint8)
  color[20:60, 30:40] = 0
  image = Image.fromarray(color)
  image.save(tmp_path / 'image.png')
  expected = adapted.predict_proba(color[None])
  assert expected.shape == (1, 3)
  several = np.concatenate([expected, expected])
  for one in (color, color.tolist(), image, tmp_path / 'image.png'):
    np.testing.assert_array_equal(adapted.predict_proba(one), expected)
    assert len(adapted.predict(one)) == 1
  for two in (
    [color, image],
    (color.tolist(), str(tmp_path / 'image.png')),
    (x for x in (color, image)),
    np.stack([color, color]),
  ):
    np.testing.assert_array_equal(adapted.predict_proba(two), several)
  gray = QUERIES[0][..., 0]
  expected = adapted.predict_proba([gray])
  for one in (gray, gray[None], gray[..., None], gray[None, ..., None]):
    np.testing.assert_array_equal(adapted.predict_proba(one), expected)
  assert len(adapted.predict(np.stack([gray] * 5))) == 5


@pytest.mark.parametrize('method', ['fit', 'predict', 'predict_proba'])
@pytest.mark.parametrize(
  'images, message',
  [
    (np.zeros((6, 3, 84, 84), np.uint8), 'image 0: .* channels must come last'),
    (list(np.full((84, 84, 3), 9)), 'image 0: .* a row of pixels: pass whole'),
    (np.zeros((2, 2, 9, 9, 3)), 'expected images .* got an array of shape'),
    (np.zeros(9), 'expected images .* got an array of shape'),
    (7, 'expected images .* got an array of shape'),
    ({'a': QUERIES[0]}, 'expected images, got a dict'),
    (b'image', 'expected images, got a bytes'),
    ([QUERIES[0], QUERIES[1].astype(float)], 'image 1: .* got float64 in 0'),
    ([QUERIES[0], None], 'image 1: '),
    ([[[1, 2], [3]], [4]], 'not an array of pixels'),
    (np.stack(QUERIES) // 128, 'largest value of all images is 1 of 255'),
    (np.stack(QUERIES) // 16, 'largest value of all images is 15 of 255'),
    (np.stack(QUERIES) / 255.0**2, 'largest value of all images is 1 of 255'),
    (np.stack(QUERIES) / 127.5 - 1, r'image 0: expected .* in -1..1'),
    ('missing.png', 'missing.png: No such file'),
  ],
  ids=str,
)
def test_ambiguous_images_are_rejected(
  adapted, few_shot, images, message, method
):
  with pytest.raises(UserError, match=message):
    if method == 'fit':
      few_shot.fit(images, LABELS)
    else:
      getattr(adapted, method)(images)


def test_channels_first_is_ambiguous_for_models_of_color_images(tmp_path):
  few_shot = maml_jax.load(REPOSITORY / 'checkpoints' / 'mini_5w1s')
  with pytest.raises(UserError, match='either 3 gray images or one color'):
    few_shot.transform(np.zeros((3, 84, 84), np.uint8))
  color = np.full((84, 84, 3), 200, np.uint8)
  assert few_shot.transform(color).shape == (1, 84, 84, 3)
  assert few_shot.transform(np.full((5, 84, 84), 200)).shape == (5, 84, 84, 3)


def test_fit_raises_if_adaptation_diverges(few_shot):
  params = jax.tree.map(lambda x: np.full_like(x, np.inf), few_shot.params)
  with pytest.raises(NonFiniteError, match='after adaptation'):
    few_shot._replace(params=params).fit(SUPPORT, LABELS, num_steps=1)


def test_regression_checkpoint_adapts_but_does_not_fit_images(tmp_path):
  few_shot = maml_jax.load(
    image_folders.make_checkpoint(
      tmp_path / 'c',
      data__name='sinusoid',
      model__encoder='mlp',
      task__ways=1,
      val__ways=1,
      eval__ways=1,
    )
  )
  x = jnp.linspace(-5, 5, 10)[:, None]
  params, stats, losses = few_shot.learner.adapt(
    few_shot.params, few_shot.stats, Batch(x, jnp.sin(x))
  )
  assert few_shot.learner.predict(params, stats, x).shape == (10, 1)
  with pytest.raises(UserError, match='on regression, sinusoid: use a'):
    few_shot.fit(SUPPORT, LABELS)
