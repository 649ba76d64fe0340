"""Classifiers that a checkpoint learns from a few images, on NumPy arrays.

    few = maml_jax.load('checkpoints/glyphs_5w1s')
    classifier = few.fit(images, labels)
    classifier.predict(others)

Legend: N images, W classes, D features.
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from maml_jax import config as config_lib
from maml_jax import data
from maml_jax.data import images as image_lib
from maml_jax.experiment import setup
from maml_jax.experiment.run_dir import require_same_config
from maml_jax.experiment.setup import Phase
from maml_jax.inner_loop import InnerConfig
from maml_jax.learner import Learner, make_learner
from maml_jax.types import Batch, Episode, Model, PyTree
from maml_jax.utils.errors import NonFiniteError, UserError, check_choice

HEADS = ('checkpoint', 'zero', 'prototype')
# Inner steps, unless an evaluation of the checkpoint takes more. With several
# images of a class, or a new head, few steps of a large rate end anywhere.
DEFAULT_NUM_STEPS = 10
# By how much logits differ where squared distances differ by the mean one.
PROTOTYPE_SCALE = 4.0
FORMAT_VERSION = 1  # of the files of `Classifier.save`
# Images to answer for are taken so many at a time, filled up with black ones:
# one program serves any number, and every image gets the same bits.
BATCH_SIZE = 16


class Classifier(NamedTuple):
  """What has been learned from a few images.

  Attributes:
    classes: [W] the labels it was given, sorted.
    learner: whose `predict(params, stats, image)` gives the logits.
    params: adapted.
    stats: likewise.
    config: of the checkpoint.
    phase: what was adapted, and how.
    head: which head it began with, one of `HEADS`.
    logits: `logits(image uint8 [N, H, W, C]) -> [N, W] float32`, of images that
      have the size and the channels of the model.
  """

  classes: np.ndarray
  learner: Learner
  params: PyTree
  stats: PyTree
  config: ConfigDict
  phase: Phase
  head: str
  logits: Callable[[np.ndarray], np.ndarray]

  def probabilities(self, images) -> np.ndarray:
    """How probable each class is for each image.

    Args:
      images: see `Loaded.fit`.

    Returns:
      [N, W] float32, each row of sum 1; columns in the order of `classes`.

    Raises:
      UserError: these are no images.
    """
    return self.answer(_prepare(self.config, images))

  def answer(self, image: np.ndarray) -> np.ndarray:
    """`probabilities` of images as `logits` takes them."""
    return softmax(self.logits(image))

  def predict(self, images) -> np.ndarray:
    """The most probable class of each image.

    An answer does not depend on the other images, unless the checkpoint was
    loaded with norm='batch'.

    Args:
      images: see `Loaded.fit`.

    Returns:
      [N], labels as they were given to `fit`.

    Raises:
      UserError: these are no images.
    """
    return self.classes[self.predict_proba(images).argmax(-1)]

  def save(self, path: str | os.PathLike) -> None:
    """Writes the classifier to a file, which `maml_jax.load_classifier` reads.

    A file of that name is replaced once the new one is whole.

    Args:
      path: of the file, such as 'model.npz'.

    Raises:
      UserError: it cannot be written.
    """
    facts = {
      'format': FORMAT_VERSION,
      'classes': self.classes.tolist(),
      'config': config_lib.to_json(self.config),
      'phase': self.phase._asdict(),
      'head': self.head,
    }
    trees = {'params': self.params, 'stats': self.stats}
    arrays = {
      jax.tree_util.keystr(path, simple=True, separator='/'): np.asarray(leaf)
      for path, leaf in jax.tree_util.tree_leaves_with_path(trees)
    }
    path = pathlib.Path(path)
    new = path.with_name(path.name + '.new')
    try:
      with open(new, 'wb') as file:
        np.savez(file, facts=np.array(json.dumps(facts)), **arrays)
      os.replace(new, path)
    except OSError as error:
      new.unlink(missing_ok=True)
      raise UserError(f'cannot write {path}: {error.strerror}') from error


class FewShotLearner(NamedTuple):
  """A checkpoint, ready to learn from a few images. See `maml_jax.load`.

  Attributes:
    learner: of the checkpoint's own number of ways; functions of JAX, as they
      are described in `maml_jax.learner`.
    params: the meta-learned initialisation.
    stats: the statistics that go with it.
    config: with which it was trained.
    phase: what `learner` was made for: norm mode, inner steps, ...
    path: of the checkpoint.
    transform: `transform(images) -> float32 [N, H, W, C]`, what the functions
      of `learner` take, of images as `fit` takes them.
  """

  learner: Learner
  params: PyTree
  stats: PyTree
  config: ConfigDict
  phase: Phase
  path: pathlib.Path
  transform: Callable

  def fit(
    self,
    images,
    labels: Sequence,
    *,
    num_steps: int | None = None,
    head: str | None = None,
  ) -> Classifier:
    """Learns to tell classes apart from a few images of each.

    Args:
      images: [N, H, W, C] or [N, H, W], or a list of N arrays of any sizes:
        uint8 0..255, or floats 0..1; grey (C = 1), colour (3), or with
        transparency (4). They are brought to the size, the channels and the
        normalisation of the checkpoint's data; for a checkpoint of characters,
        which are light on dark, ink on light paper is inverted.
      labels: [N], one of each image: words, numbers, ...; two classes or more,
        one image of each or more. Classes count alike, however many images
        they have.
      num_steps: inner steps; by default 10, or as many as in the checkpoint's
        evaluation if they are more.
      head: what the last layer begins with: 'checkpoint', the first W outputs
        of that one; 'zero'; or 'prototype', the nearest class mean as a linear
        layer, of Proto-MAML, Triantafillou et al. 2020, arXiv 1903.03096. By
        default 'zero' if the checkpoint was trained with that, else
        'checkpoint', or 'prototype' if that has too few outputs.

    Returns:
      A `Classifier`.

    Raises:
      UserError: these are no images, or labels of one class only.
    """
    image = _prepare(self.config, images)
    classes, label = _classes(labels, len(image))
    program = make_adaptation_program(self, len(classes), num_steps, head)
    return fit_classifier(self, program, image, label, classes)


class AdaptationProgram(NamedTuple):
  """How a checkpoint adapts to W classes.

  Attributes:
    adapt: `adapt(params, stats, image, label) -> params, stats, losses [K]`, of
      images uint8 [N, H, W, C] and labels [N] int32; jitted.
    learner: what it makes use of.
    phase: what it does.
    head: which head it begins with, one of `HEADS`.
  """

  adapt: Callable
  learner: Learner
  phase: Phase
  head: str


def load(
  checkpoint: str | os.PathLike,
  *,
  which: str = 'best',
  norm: str | tuple | None = None,
  config: ConfigDict | None = None,
) -> FewShotLearner:
  """See `maml_jax.load`.

  Args:
    checkpoint: a directory.
    which: 'best' or 'latest' of a run.
    norm: instead of that of the config.
    config: says how to adapt; by default that of the checkpoint, from which it
      may differ in what an evaluation may.
  """
  from maml_jax.evaluation import evaluate
  from maml_jax.experiment import (
    checkpoint as checkpoint_lib,  # takes its seconds
  )
  from maml_jax.experiment import transfer

  if not pathlib.Path(checkpoint).is_dir():
    raise UserError(f'no such directory: {checkpoint}')
  saved = checkpoint_lib.load(checkpoint, which)
  if config is None:
    config = saved.config
  require_same_config(
    saved.config, config, saved.path, evaluate.EVAL_IGNORED_FIELDS
  )
  phase = setup.eval_phase(config)
  phase = phase._replace(
    ways=config.task.ways,
    norm=_inductive(phase.norm) if norm is None else norm,
  )
  learner = setup.phase_learner(config, phase)
  params, stats = transfer.transfer_params(learner, saved.params, saved.stats)
  return FewShotLearner(
    learner,
    params,
    stats,
    config,
    phase,
    saved.path,
    lambda images: _scaled(config, _prepare(config, images)),
  )


def load_classifier(path: str | os.PathLike) -> Classifier:
  """Reads what `Classifier.save` has written; data, never code.

  Args:
    path: of the file.

  Raises:
    UserError: there is no such file, or it is of another kind or damaged.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f'no such file: {path}')
  try:
    with open(path, 'rb') as file, np.load(file, allow_pickle=False) as npz:
      arrays = dict(npz)
    facts = json.loads(str(arrays.pop('facts')))
    phase = facts['phase']
    if not isinstance(phase['norm'], str):  # JSON knows no tuples
      phase['norm'] = tuple(map(tuple, phase['norm']))
    trees = {'params': {}, 'stats': {}}
    for name, array in arrays.items():
      *parents, last = name.split('/')
      tree = trees
      for parent in parents:
        tree = tree.setdefault(parent, {})
      tree[last] = array
    if facts['format'] != FORMAT_VERSION:
      raise ValueError(
        f'it is of format {facts["format"]}, not {FORMAT_VERSION}'
      )
    return make_classifier(
      config_lib.from_json(facts['config']),
      Phase(**phase),
      facts['head'],
      np.array(facts['classes']),
      trees['params'],
      trees['stats'],
    )
  except Exception as error:  # a file can be anything
    reason = str(error).partition('\n')[0][:100]
    raise UserError(
      f'{path} is no model that was saved by --mode=adapt, or damaged: {reason}'
    ) from error


def make_adaptation_program(
  loaded: FewShotLearner,
  ways: int,
  num_steps: int | None = None,
  head: str | None = None,
) -> AdaptationProgram:
  """Makes what adapts a checkpoint to `ways` classes; see `Loaded.fit`."""
  config, phase = loaded.config, loaded.phase
  head = _default_head(config, ways) if head is None else head
  check_choice('head', head, HEADS)
  if head == 'checkpoint' and ways > phase.ways:
    raise UserError(
      f'the head of the checkpoint has {phase.ways} outputs, too few for '
      f'{ways} classes: take prototype or zero'
    )
  if num_steps is None:
    num_steps = max(phase.num_steps, DEFAULT_NUM_STEPS)
  phase = phase._replace(ways=ways, num_steps=num_steps)
  return _program(config_lib.to_json(config), phase, head)


def leave_one_out(
  loaded: FewShotLearner,
  program: AdaptationProgram,
  image,
  label,
  rows: Sequence[int],
) -> np.ndarray:
  """Asks for each of some images, having learned from all others.

  Args:
    loaded: a checkpoint.
    program: from `make_program`.
    image: uint8 [N, H, W, C], of the size and the channels of the model.
    label: [N] int32, two images or more of each class.
    rows: which images, n of them.

  Returns:
    Probabilities [n, W].
  """
  config, rows = loaded.config, np.asarray(rows, np.int32)
  others = np.arange(len(label) - 1, dtype=np.int32)[None]
  others = others + (others >= rows[:, None])  # all but the row, [n, N - 1]

  @jax.jit
  def ask(params, stats, image, label):
    def one(chosen):
      row, others = chosen
      adapted, after, _ = program.adapt(
        params, stats, image[others], label[others]
      )
      asked = _scaled(config, image[row][None])
      return program.learner.predict(adapted, after, asked)[0]

    return lax.map(one, (jnp.asarray(rows), jnp.asarray(others)))

  with setup.matmul_precision(config):
    logits = ask(loaded.params, loaded.stats, image, jnp.asarray(label))
  return softmax(np.asarray(logits))


def fit_classifier(
  loaded: FewShotLearner,
  program: AdaptationProgram,
  image,
  label,
  classes: np.ndarray,
) -> Classifier:
  """Adapts a checkpoint; see `leave_one_out` for the arguments.

  Raises:
    NotFinite: of a loss or a parameter.
  """
  with setup.matmul_precision(loaded.config):
    params, stats, losses = program.adapt(
      loaded.params, loaded.stats, image, label
    )
  for leaf in jax.tree.leaves((params, losses)):
    if not np.isfinite(leaf).all():
      raise NonFiniteError(
        'a loss or a parameter is not finite after adaptation'
      )
  return make_classifier(
    loaded.config, program.phase, program.head, classes, params, stats
  )


def make_classifier(
  config: ConfigDict,
  phase: Phase,
  head: str,
  classes: np.ndarray,
  params: PyTree,
  stats: PyTree,
) -> Classifier:
  """Makes a `Classifier` of adapted parameters."""
  learner, answer = _answerer(config_lib.to_json(config), phase)

  def logits(image):
    # A batch that is normalised by its own moments must be whole.
    n = len(image)
    size = n if _is_transductive(phase.norm) else BATCH_SIZE
    parts = [np.zeros((0, len(classes)), np.float32)]
    for start in range(0, n, max(size, 1)):
      part = image[start : start + size]
      filling = [(0, size - len(part))] + [(0, 0)] * (image.ndim - 1)
      with setup.matmul_precision(config):
        done = answer(params, stats, np.pad(part, filling))
      parts.append(np.asarray(done)[: len(part)])
    return np.concatenate(parts)

  return Classifier(
    classes, learner, params, stats, config, phase, head, logits
  )


@functools.cache  # and compiled once for each number of images
def _program(config_text: str, phase: Phase, head: str) -> AdaptationProgram:
  config = config_lib.from_json(config_text)
  learner = make_learner(
    setup.phase_model(config, phase),
    InnerConfig(**{**config.inner, 'num_steps': phase.num_steps}),
    loss_fn=balanced_cross_entropy,
  )
  encoder = setup.phase_model(config, phase, head=False)

  @jax.jit
  def adapt(params, stats, image, label):
    support = Batch(_scaled(config, image), label)
    classifier = _first_outputs(params['classifier'], phase.ways)
    if head != 'checkpoint':
      classifier = _zero_head(params['classifier'], phase.ways)
    if head == 'prototype':
      classifier |= _prototypes(encoder, params, stats, support, phase.ways)
    params = {**params, 'classifier': classifier}
    return learner.adapt(params, stats, support)

  return AdaptationProgram(adapt, learner, phase, head)


@functools.cache
def _answerer(config_text: str, phase: Phase) -> tuple[Learner, Callable]:
  """The learner of a phase, and its jitted answers to uint8 images."""
  config = config_lib.from_json(config_text)
  learner = setup.phase_learner(config, phase)

  @jax.jit
  def answer(params, stats, image):
    return learner.predict(params, stats, _scaled(config, image))

  return learner, answer


def balanced_cross_entropy(logits, label):
  """Mean over classes of the mean cross entropy of each.

  It is the usual mean if classes are equally large; if not, a large class has
  no more weight than a small one.

  Args:
    logits: [N, W].
    label: [N] int, each of 0..W-1 once or more.
  """
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
  one_hot = jax.nn.one_hot(label, logits.shape[-1])
  return (losses @ one_hot / one_hot.sum(0)).mean()


def _default_head(config: ConfigDict, ways: int) -> str:
  if config.inner.reset_classifier:
    return 'zero'
  return 'checkpoint' if ways <= config.task.ways else 'prototype'


def _first_outputs(classifier: PyTree, ways: int) -> PyTree:
  """A head cut to W outputs; what else it has, a temperature, is kept."""
  return {
    **classifier,
    **{name: classifier[name][..., :ways] for name in ('kernel', 'bias')},
  }


def _zero_head(classifier: PyTree, ways: int) -> PyTree:
  """Likewise, but of zeros."""
  size = classifier['kernel'].shape[0]
  zero = {'kernel': jnp.zeros((size, ways)), 'bias': jnp.zeros(ways)}
  return {**classifier, **zero}


def _prototypes(
  encoder: Model, params, stats, support: Batch, ways: int
) -> PyTree:
  """The nearest class mean as a linear layer: kernel [D, W], bias [W].

  |x - m|^2 = |x|^2 - 2 m.x + |m|^2, of which the first is the same for all
  classes.
  """
  params = {'encoder': params['encoder']}
  x, _ = encoder.apply(params, stats, support.inputs, train=True)
  one_hot = jax.nn.one_hot(support.targets, ways)
  means = one_hot.T @ x / one_hot.sum(0)[:, None]
  centre = means.mean(0)  # taken off both, for the sake of rounding
  means = means - centre[None]
  squares = jnp.square(means).sum(-1)
  mean_distance = 2 * squares.sum() / (ways - 1)
  scale = PROTOTYPE_SCALE / jnp.maximum(mean_distance, 1e-6)
  return {
    'kernel': 2 * scale * means.T,
    'bias': -scale * (squares + 2 * means @ centre),
  }


def _classes(labels: Sequence, num_images: int):
  """The distinct labels, sorted, and the number of each image's: int32 [N]."""
  labels = np.asarray(labels)
  if labels.ndim != 1 or len(labels) != num_images:
    raise UserError(
      f'{num_images} images need as many labels in one row, not {labels.shape}'
    )
  classes, label = np.unique(labels, return_inverse=True)
  if len(classes) < 2:
    raise UserError(f'two classes or more are needed, there is {list(classes)}')
  return classes, label.astype(np.int32)


def _prepare(config: ConfigDict, images) -> np.ndarray:
  """Any images -> uint8 [N, H, W, C] of the checkpoint's data."""
  if config.data.name in data.REGRESSIONS:
    raise UserError(
      f'{config.data.name} is a regression: there are no images and classes'
    )
  spec = data.spec(config.data.name)
  if not isinstance(images, Sequence):
    images = np.asarray(images)
    if images.ndim not in (3, 4):
      raise UserError(
        f'images are [N, H, W, C] or [N, H, W], not {images.shape}'
      )
  done = np.empty((len(images), *spec.image_shape), np.uint8)
  for i, image in enumerate(images):
    done[i] = image_lib.from_array(image, spec)
  return done


def _scaled(config: ConfigDict, image):
  """uint8 [N, H, W, C] -> what the model takes."""
  phase = setup.eval_phase(config)
  batch = Batch(jnp.asarray(image), ())
  return setup.phase_transform(config, phase)(
    jax.random.key(0), Episode(batch, batch)
  ).query.inputs


def _inductive(norm: str | tuple) -> str | tuple:
  """A norm mode in which no answer depends on the other questions."""
  if isinstance(norm, str):
    return 'support' if norm == 'batch' else norm
  return tuple((pattern, _inductive(mode)) for pattern, mode in norm)


def _is_transductive(norm: str | tuple) -> bool:
  return norm != _inductive(norm)


def softmax(logits: np.ndarray) -> np.ndarray:
  """Logits [N, W] -> probabilities."""
  powers = np.exp(logits - logits.max(-1, keepdims=True))
  return powers / powers.sum(-1, keepdims=True)
