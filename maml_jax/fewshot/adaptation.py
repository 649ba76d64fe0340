"""Adaptation of a checkpoint to a few images of any number of classes.

    learner = maml_jax.load('checkpoints/glyphs_5w1s')
    classifier = learner.fit(images, labels)
    classifier.predict(other_images)

Legend: N images, W classes, K inner steps.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax
from ml_collections import ConfigDict
from scipy.special import softmax

from maml_jax import config as config_lib
from maml_jax.evaluation.measurement import EVAL_IGNORED_FIELDS
from maml_jax.experiment import checkpoint as checkpoint_lib
from maml_jax.experiment import setup
from maml_jax.experiment.run_dir import require_same_config
from maml_jax.experiment.setup import Phase, to_model_inputs
from maml_jax.experiment.transfer import transfer_params
from maml_jax.fewshot.classifier import Classifier, make_classifier
from maml_jax.fewshot.heads import (
  HEADS,
  default_head,
  make_initial_head,
)
from maml_jax.fewshot.inputs import encode_labels, prepare_images
from maml_jax.learner import Learner
from maml_jax.types import Batch, PyTree
from maml_jax.utils.errors import NonFiniteError, UserError, check_choice

__all__ = [
  'DEFAULT_NUM_STEPS',
  'AdaptationProgram',
  'FewShotLearner',
  'fit_classifier',
  'fit_each_step',
  'leave_one_out',
  'load',
  'make_adaptation_program',
]

# Minimum default of the inner steps. With several images per class, or a new
# head, the few steps of an evaluation are not enough to converge.
DEFAULT_NUM_STEPS = 10


class FewShotLearner(NamedTuple):
  """A checkpoint that adapts to a few images; see `maml_jax.load`.

  Attributes:
    learner: pure functions for the number of ways of the checkpoint, see
      `maml_jax.learner`.
    params: the meta-learned initialization.
    stats: its statistics.
    config: the config of the checkpoint.
    phase: the settings of `learner`: norm mode, inner steps, ...
    path: the directory of the checkpoint.
    transform: `transform(images) -> float32 [N, H, W, C]` converts the images
      that `fit` takes to the inputs of `learner`.
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
    images: Sequence | np.ndarray,
    labels: Sequence,
    *,
    num_steps: int | None = None,
    head: str | None = None,
  ) -> Classifier:
    """Adapts to labeled images and returns a classifier of their classes.

    Args:
      images: a sequence of N images of any sizes: arrays [H, W] or [H, W, C],
        PIL images, or paths of image files; or one array [N, H, W, C] or
        [N, H, W]. Arrays contain integers 0..255, uint16 0..65535, or floats or
        booleans 0..1; gray (C = 1), color (3), or color with transparency (4).
        A single image, also as an array [H, W, C] or [H, W], is a batch of one.
        Images are converted to the size, channels and normalization of the
        checkpoint's data set. If its images are light ink on black, images of
        dark ink on light paper are inverted.
      labels: [N], one label per image: strings, booleans or finite numbers;
        two or more classes. All classes have the same weight in the loss,
        whatever their number of images.
      num_steps: inner steps; default 10, or those of the checkpoint's
        evaluation if they are more. A checkpoint with learned rates or another
        learned inner loop, or without inner steps (ProtoNet), uses those of its
        evaluation.
      head: the initial last layer: 'zero'; 'prototype', the nearest-centroid
        classifier as a linear layer (ProtoMAML, Triantafillou et al. 2020,
        arXiv 1903.03096), rescaled unless the checkpoint was trained with it;
        or 'checkpoint', the first W outputs of the checkpoint's head, with
        which the answers depend on the alphabetical order of the classes.
        Default: 'zero', or 'prototype' if the checkpoint was trained with it or
        does not adapt its head.

    Returns:
      A `Classifier`.

    Raises:
      UserError: the images or labels are invalid, or there is only one class.
      NonFiniteError: the adaptation diverged.
    """
    pixels = prepare_images(self.config, images)
    classes, class_ids = encode_labels(labels, len(pixels))
    program = make_adaptation_program(self, len(classes), num_steps, head)
    return fit_classifier(self, program, pixels, class_ids, classes)


class AdaptationProgram(NamedTuple):
  """The compiled adaptation of a checkpoint to W classes.

  Attributes:
    adapt: `adapt(params, stats, images, labels) -> params, stats, losses [K]`
      for images uint8 [N, H, W, C] and labels [N] int32; jitted.
    adapt_by_step: the same, but returns params and stats after each of 0..K
      steps, with a leading axis; jitted.
    predict_by_step: `predict_by_step(params, stats, images) -> [K + 1, N, W]`,
      the logits of the results of `adapt_by_step`; jitted.
    learner: the learner for W classes.
    phase: the settings of `learner`.
    head: the initial head, one of `heads.HEADS`.
  """

  adapt: Callable
  adapt_by_step: Callable
  predict_by_step: Callable
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
  """Loads a checkpoint; see `maml_jax.load`.

  Args:
    checkpoint: a workdir or the directory of one checkpoint.
    which: 'best' or 'latest', if it is a workdir.
    norm: a batch norm mode that replaces the one in the config.
    config: settings of the adaptation; default: the config of the checkpoint,
      from which it may differ in the fields that an evaluation may change.

  Raises:
    UserError: there is no valid checkpoint, or it does not fit `config`.
  """
  saved = checkpoint_lib.load(checkpoint, which)
  adapt_config = saved.config if config is None else config
  require_same_config(
    saved.config, adapt_config, saved.path, EVAL_IGNORED_FIELDS
  )
  phase = setup.eval_phase(adapt_config)
  phase = phase._replace(
    ways=adapt_config.task.ways,
    norm=_inductive(phase.norm) if norm is None else norm,
  )
  learner = setup.phase_learner(adapt_config, phase)
  params, stats = transfer_params(learner, saved.params, saved.stats)
  return FewShotLearner(
    learner,
    params,
    stats,
    adapt_config,
    phase,
    saved.path,
    lambda images: to_model_inputs(
      adapt_config, prepare_images(adapt_config, images)
    ),
  )


def make_adaptation_program(
  few_shot_learner: FewShotLearner,
  ways: int,
  num_steps: int | None = None,
  head: str | None = None,
) -> AdaptationProgram:
  """Returns the program that adapts a checkpoint to `ways` classes.

  Args:
    few_shot_learner: from `load`.
    ways: W.
    num_steps: see `FewShotLearner.fit`.
    head: see `FewShotLearner.fit`.

  Raises:
    UserError: `head` is unknown or has too few outputs.
  """
  config, phase = few_shot_learner.config, few_shot_learner.phase
  learner = few_shot_learner.learner
  if num_steps is None:
    num_steps = phase.num_steps
    if num_steps and not learner.inner.has_learned:
      num_steps = max(num_steps, DEFAULT_NUM_STEPS)
  if head is None:
    head = default_head(learner, few_shot_learner.params, num_steps)
  check_choice('head', head, HEADS)
  if head == 'checkpoint' and ways > phase.ways:
    raise UserError(
      f'head=checkpoint: {phase.ways} outputs are too few for {ways} '
      'classes; use prototype or zero'
    )
  phase = phase._replace(ways=ways, num_steps=num_steps)
  return _cached_program(config_lib.to_json(config), phase, head)


def fit_classifier(
  few_shot_learner: FewShotLearner,
  program: AdaptationProgram,
  images: np.ndarray,
  labels: np.ndarray,
  classes: np.ndarray,
) -> Classifier:
  """Adapts a checkpoint to a support set.

  Args:
    few_shot_learner: from `load`.
    program: from `make_adaptation_program`.
    images: uint8 [N, H, W, C] with the size and the channels of the model.
    labels: [N] int32, 0..W-1.
    classes: [W] the labels that `Classifier.predict` returns.

  Raises:
    NonFiniteError: a loss or a parameter is not finite after adaptation.
  """
  with setup.matmul_precision(few_shot_learner.config):
    params, stats, losses = program.adapt(
      few_shot_learner.params, few_shot_learner.stats, images, labels
    )
  _require_finite((params, losses))
  settings = few_shot_learner.config, program.phase, program.head
  return make_classifier(*settings, classes, params, stats)


def fit_each_step(
  few_shot_learner: FewShotLearner,
  program: AdaptationProgram,
  images: np.ndarray,
  labels: np.ndarray,
  classes: np.ndarray,
) -> tuple[Classifier, Callable]:
  """Adapts like `fit_classifier`, and keeps the parameters of each step.

  Returns:
    The classifier after the last step, and `predict(images) -> [K + 1, N, W]`,
    the probabilities after 0, 1, ..., K steps for images like those of
    `fit_classifier`.

  Raises:
    NonFiniteError: a parameter is not finite after adaptation.
  """
  config = few_shot_learner.config
  with setup.matmul_precision(config):
    by_step = program.adapt_by_step(
      few_shot_learner.params, few_shot_learner.stats, images, labels
    )
  last = jax.tree.map(lambda x: x[-1], by_step)
  _require_finite(last[0])

  def predict(images):
    with setup.matmul_precision(config):
      logits = program.predict_by_step(*by_step, images)
    return softmax(np.asarray(logits), axis=-1)

  settings = config, program.phase, program.head
  return make_classifier(*settings, classes, *last), predict


def _require_finite(tree: PyTree) -> None:
  for leaf in jax.tree.leaves(tree):
    if not np.isfinite(leaf).all():
      raise NonFiniteError(
        'a loss or a parameter is not finite after adaptation'
      )


def leave_one_out(
  few_shot_learner: FewShotLearner,
  program: AdaptationProgram,
  images: np.ndarray,
  labels: np.ndarray,
  rows: npt.ArrayLike,
) -> np.ndarray:
  """Classifies each of some images after adaptation to all the others.

  Args:
    few_shot_learner: see `fit_classifier`.
    program: see `fit_classifier`.
    images: see `fit_classifier`.
    labels: see `fit_classifier`; each class has two or more images.
    rows: [n] the images to leave out, one at a time.

  Returns:
    Probabilities [n, W].
  """
  config, left_out = few_shot_learner.config, np.asarray(rows, np.int32)
  others = np.arange(len(labels) - 1, dtype=np.int32)[None]
  others = others + (others >= left_out[:, None])  # [n, N - 1], all but the row

  @jax.jit
  def predict_left_out(params, stats, images, labels):
    def predict_one(indices):
      row, others = indices
      adapted, adapted_stats, _ = program.adapt(
        params, stats, images[others], labels[others]
      )
      inputs = to_model_inputs(config, images[row][None])
      return program.learner.predict(adapted, adapted_stats, inputs)[0]

    return lax.map(predict_one, (jnp.asarray(left_out), jnp.asarray(others)))

  with setup.matmul_precision(config):
    logits = predict_left_out(
      few_shot_learner.params,
      few_shot_learner.stats,
      images,
      jnp.asarray(labels),
    )
  return softmax(np.asarray(logits), axis=-1)


@functools.cache  # the program compiles once per number of images
def _cached_program(
  config_json: str, phase: Phase, head: str
) -> AdaptationProgram:
  config = config_lib.from_json(config_json)
  # The head of `make_initial_head`, unless the inner loop computes it.
  uses_own = head == config.inner.head == 'prototype'
  learner = setup.phase_learner(
    config,
    phase,
    head='prototype' if uses_own else 'learned',
    class_weights='balanced',
  )
  model = setup.phase_model(config, phase)

  def start(params, stats, images, labels):
    support = Batch(to_model_inputs(config, images), labels)
    initial, _ = transfer_params(learner, params, stats)
    if not uses_own:
      initial['classifier'] = make_initial_head(
        head, model, params, stats, support, phase.ways
      )
    return initial, stats, support

  @jax.jit
  def adapt(*args):
    return learner.adapt(*start(*args))

  @jax.jit
  def adapt_by_step(*args):
    return learner.adapt_and_observe(*start(*args), lambda *state: state)

  @jax.jit
  def predict_by_step(params, stats, images):
    inputs = to_model_inputs(config, images)
    return lax.map(lambda x: learner.predict(*x, inputs), (params, stats))

  return AdaptationProgram(
    adapt, adapt_by_step, predict_by_step, learner, phase, head
  )


def _inductive(norm: str | tuple) -> str | tuple:
  """Replaces norm mode 'batch', which depends on the other query images."""
  if isinstance(norm, str):
    return 'support' if norm == 'batch' else norm
  return tuple((pattern, _inductive(mode)) for pattern, mode in norm)
