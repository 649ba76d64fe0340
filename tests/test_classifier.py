"""Learning from a few images: against plain loops and closed forms."""

import subprocess
import sys

import image_folders
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import maml_jax
from maml_jax import data
from maml_jax.data import images as image_lib
from maml_jax.evaluation import evaluate
from maml_jax.experiment import checkpoint, setup
from maml_jax.fewshot import classifier
from maml_jax.learner import cross_entropy
from maml_jax.types import Batch
from maml_jax.utils.errors import NonFiniteError, UserError

NAMES = ['bar', 'bar', 'disc', 'frame', 'frame', 'frame']
PICTURES = [
  np.asarray(image_folders.picture(name, i)) for i, name in enumerate(NAMES)
]
OTHERS = [
  np.asarray(image_folders.picture(name, 50 + i))
  for i in range(7)
  for name in image_folders.CLASSES
]


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  return image_folders.make_checkpoint(
    tmp_path_factory.mktemp('own') / 'checkpoint'
  )


@pytest.fixture(scope='module')
def few(path):
  return maml_jax.load(path)


@pytest.fixture(scope='module')
def learned(few):
  return few.fit(PICTURES, NAMES, num_steps=1)


def as_glyphs(pictures):
  """Scaled by hand: float32 [N, 28, 28, 1]."""
  spec = data.spec('glyphs')
  pixels = [image_lib.from_array(picture, spec) for picture in pictures]
  return jnp.asarray(np.stack(pixels), jnp.float32) / 255


def close(a, b):
  np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_importing_the_package_imports_nothing():
  script = 'import sys, maml_jax; print("jax" in sys.modules, maml_jax.load)'
  done = subprocess.run(
    [sys.executable, '-c', script], check=True, text=True, capture_output=True
  )
  assert done.stdout.startswith('False <function load')


def test_load_gives_learner_params_and_stats(few, path):
  learner, params, stats = few[:3]
  saved = checkpoint.load(path)
  jax.tree.map(np.testing.assert_array_equal, params, saved.params)
  assert few.config.to_dict() == saved.config.to_dict()
  image = few.transform(PICTURES)
  close(image, as_glyphs(PICTURES))
  logits = learner.predict(params, stats, image)
  assert logits.shape == (6, 3)


def test_fit_is_gradient_descent_on_a_loss_in_which_classes_count_alike(
  few, learned
):
  """One step, by hand."""
  model = setup.phase_model(few.config, few.phase)
  image, rows = as_glyphs(PICTURES), ([0, 1], [2], [3, 4, 5])

  @jax.jit
  def loss(params):
    logits, stats = model.apply(params, few.stats, image, train=True)
    parts = [
      cross_entropy(logits[jnp.array(r)], jnp.full(len(r), c))
      for c, r in enumerate(rows)
    ]
    return sum(parts) / 3, stats

  rates, grads = few.config.inner, jax.grad(loss, has_aux=True)(few.params)[0]
  params = {
    group: jax.tree.map(
      lambda p, g, rate=rate: p - rate * g, few.params[group], grads[group]
    )
    for group, rate in (
      ('encoder', rates.encoder_lr),
      ('classifier', rates.classifier_lr),
    )
  }
  jax.tree.map(close, learned.params, params)
  _, stats = loss(params)
  logits, _ = model.apply(params, stats, as_glyphs(OTHERS), train=False)
  close(learned.predict_proba(OTHERS), jax.nn.softmax(logits))
  assert learned.classes.tolist() == list(image_folders.CLASSES)
  best = [image_folders.CLASSES[i] for i in np.argmax(logits, -1)]
  assert learned.predict(OTHERS).tolist() == best


def test_an_answer_does_not_depend_on_the_others(learned):
  """Bit by bit: alone, among few, among more than a batch, in any order."""
  assert len(OTHERS) > classifier.BATCH_SIZE
  together = learned.predict_proba(OTHERS)
  np.testing.assert_allclose(together.sum(1), 1, rtol=1e-6)
  alone = np.concatenate([learned.predict_proba([x]) for x in OTHERS])
  np.testing.assert_array_equal(alone, together)
  order = np.random.default_rng(0).permutation(len(OTHERS))
  mixed = learned.predict_proba([OTHERS[i] for i in order])
  np.testing.assert_array_equal(mixed, together[order])
  assert learned.predict_proba(np.zeros((0, 28, 28), np.uint8)).shape == (0, 3)


def test_transductive_if_one_asks_for_it(path):
  few = maml_jax.load(path, norm='batch')
  assert evaluate.is_transductive(few.phase.norm)
  learned = few.fit(PICTURES, NAMES, num_steps=1)
  logits = learned.learner.predict(
    learned.params, learned.stats, as_glyphs(OTHERS)
  )
  close(learned.predict_proba(OTHERS), jax.nn.softmax(logits))
  alone = learned.predict_proba(OTHERS[:1])
  assert np.abs(alone - learned.predict_proba(OTHERS)[:1]).max() > 1e-3


def test_no_mode_is_transductive_by_default(few, tmp_path):
  assert few.config.eval.norm == 'batch' and few.phase.norm == 'support'
  norm = (('conv1', 'batch'), ('*', 'episodic'))
  path = image_folders.make_checkpoint(tmp_path / 'c', model__norm=norm)
  inductive = (('conv1', 'support'), ('*', 'episodic'))
  assert maml_jax.load(path).phase.norm == inductive


@pytest.mark.parametrize(
  'reset, ways, head',
  [
    (False, 2, 'checkpoint'),
    (False, 3, 'checkpoint'),
    (False, 4, 'prototype'),
    (True, 2, 'zero'),
    (True, 4, 'zero'),
  ],
)
def test_head_suits_the_checkpoint(few, reset, ways, head):
  config = few.config.copy_and_resolve_references()
  config.inner.reset_classifier = reset
  program = classifier.make_adaptation_program(
    few._replace(config=config), ways
  )
  assert program.head == head and program.phase.ways == ways
  assert program.phase.num_steps == classifier.DEFAULT_NUM_STEPS


@pytest.mark.parametrize('ways', [2, 4])
def test_prototype_head_is_the_nearest_class_mean(few, ways):
  """The softmax of minus scaled squared distances, by loops."""
  names = [f'{i % ways}' for i in range(6)]
  learned = few.fit(PICTURES, names, head='prototype', num_steps=0)
  encoder = setup.phase_model(few.config, few.phase, head=False)
  params = {'encoder': few.params['encoder']}
  support, stats = encoder.apply(
    params, few.stats, as_glyphs(PICTURES), train=True
  )
  query, _ = encoder.apply(params, stats, as_glyphs(OTHERS), train=False)
  support, query = np.float64(support), np.float64(query)
  means = [support[[n == f'{c}' for n in names]].mean(0) for c in range(ways)]
  pairs = [np.sum((a - b) ** 2) for a in means for b in means if a is not b]
  scale = classifier.PROTOTYPE_SCALE / np.mean(pairs)
  distance = [[np.sum((x - mean) ** 2) for mean in means] for x in query]
  logits = -scale * np.array(distance)
  close(learned.predict_proba(OTHERS), jax.nn.softmax(logits))


def test_zero_head_and_first_outputs(few):
  zero = few.fit(PICTURES, NAMES, head='zero', num_steps=0)
  close(zero.predict_proba(OTHERS), np.full((len(OTHERS), 3), 1 / 3))
  two = few.fit(PICTURES[:4], NAMES[:3] + ['bar'], num_steps=0)
  kernel = few.params['classifier']['kernel']
  np.testing.assert_array_equal(
    two.params['classifier']['kernel'], kernel[:, :2]
  )


@pytest.mark.parametrize('num_steps', [0, 2])
def test_leave_one_out_equals_a_loop_that_leaves_one_out(few, num_steps):
  names = ['bar', 'bar', 'disc', 'frame', 'disc', 'frame']
  program = classifier.make_adaptation_program(few, 3, num_steps)
  spec = data.spec('glyphs')
  pixels = np.stack([image_lib.from_array(x, spec) for x in PICTURES])
  label = np.array([0, 0, 1, 2, 1, 2], np.int32)
  rows = [0, 3, 5]
  done = classifier.leave_one_out(few, program, pixels, label, rows)
  for row, probabilities in zip(rows, done, strict=True):
    others = [i for i in range(6) if i != row]
    one = few.fit(
      [PICTURES[i] for i in others],
      [names[i] for i in others],
      num_steps=num_steps,
    )
    close(one.predict_proba([PICTURES[row]])[0], probabilities)


@pytest.mark.parametrize(
  'labels, kind',
  [(NAMES, str), ([3, 3, 5, 9, 9, 9], int), (list('aabccc'), str)],
)
def test_saves_what_it_reads_back(few, learned, tmp_path, labels, kind):
  path = tmp_path / 'model.npz'
  path.write_text('an older one')
  saved = learned._replace(classes=np.unique(labels))
  saved.save(path)
  again = maml_jax.load_classifier(path)
  assert again.predict(OTHERS).tolist() == saved.predict(OTHERS).tolist()
  assert isinstance(again.predict(OTHERS)[0].item(), kind)
  np.testing.assert_array_equal(
    again.predict_proba(OTHERS), saved.predict_proba(OTHERS)
  )
  assert [file.name for file in tmp_path.iterdir()] == ['model.npz']


def test_saves_norms_of_layers_and_running_moments(tmp_path):
  norm = (('conv1', 'global'), ('*', 'cumulative'))
  path = image_folders.make_checkpoint(tmp_path / 'c', model__norm=norm)
  learned = maml_jax.load(path).fit(PICTURES, NAMES, num_steps=1)
  learned.save(tmp_path / 'model.npz')
  again = maml_jax.load_classifier(tmp_path / 'model.npz')
  assert again.phase == learned.phase
  jax.tree.map(np.testing.assert_array_equal, again.stats, learned.stats)
  np.testing.assert_array_equal(
    again.predict_proba(OTHERS), learned.predict_proba(OTHERS)
  )


@pytest.mark.parametrize(
  'images, labels, kwargs, message',
  [
    (PICTURES, NAMES[1:], {}, '6 images need as many labels'),
    (PICTURES, ['bar'] * 6, {}, 'two classes or more are needed'),
    (np.zeros(5), [0, 1], {}, r'images are \[N, H, W, C\]'),
    (PICTURES[0], [0, 1], {}, 'images need as many labels'),
    (PICTURES, NAMES, {'head': 'nero'}, 'did you mean zero?'),
    (
      PICTURES,
      list('abcdef'),
      {'head': 'checkpoint'},
      'has 3 outputs, too few for 6 classes: take prototype or zero',
    ),
  ],
)
def test_refuses_what_cannot_be_learned(few, images, labels, kwargs, message):
  with pytest.raises(UserError, match=message):
    few.fit(images, labels, **kwargs)


def test_says_what_is_not_finite(few):
  params = jax.tree.map(lambda x: np.full_like(x, np.inf), few.params)
  with pytest.raises(NonFiniteError, match='after adaptation'):
    few._replace(params=params).fit(PICTURES, NAMES, num_steps=1)


def test_regression_has_no_images(tmp_path):
  few = maml_jax.load(
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
  params, stats, losses = few.learner.adapt(
    few.params, few.stats, Batch(x, jnp.sin(x))
  )
  assert few.learner.predict(params, stats, x).shape == (10, 1)
  with pytest.raises(UserError, match='is a regression'):
    few.fit(PICTURES, NAMES)
