"""Adapted classifiers of images: prediction, saving and loading.

    classifier = maml_jax.load_classifier('adapted/birds/model.npz')
    classifier.predict(images)

Legend: N images, W classes.
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy.special import softmax

from maml_jax import config as config_lib
from maml_jax.experiment import setup
from maml_jax.experiment.metrics import is_transductive
from maml_jax.experiment.setup import Phase, to_model_inputs
from maml_jax.fewshot.inputs import prepare_images
from maml_jax.learner import Learner
from maml_jax.types import PyTree
from maml_jax.utils.devices import require_devices
from maml_jax.utils.errors import UserError
from maml_jax.utils.files import oserror_as_user_error, replace_file

__all__ = [
  'BATCH_SIZE',
  'FORMAT_VERSION',
  'Classifier',
  'load_classifier',
  'make_classifier',
]

FORMAT_VERSION = 1  # of the files of `Classifier.save`
# Images are classified in batches of this size, the last one padded with zeros:
# one compiled program serves any number of images, and the result for an image
# does not depend on that number, bit for bit.
BATCH_SIZE = 16


class Classifier(NamedTuple):
  """A model that was adapted to a few images.

  Attributes:
    classes: [W] the distinct labels, sorted.
    learner: `learner.predict(params, stats, inputs)` returns the logits.
    params: the adapted parameters.
    stats: the statistics after adaptation.
    config: the config of the checkpoint.
    phase: the settings of the adaptation: norm mode, inner steps, ...
    head: the initial head, one of `heads.HEADS`.
    logits: `logits(images) -> [N, W] float32` of images uint8 [N, H, W, C] that
      already have the size and the channels of the model.
  """

  classes: np.ndarray
  learner: Learner
  params: PyTree
  stats: PyTree
  config: ConfigDict
  phase: Phase
  head: str
  logits: Callable[[np.ndarray], np.ndarray]

  def __reduce__(self):
    """Makes the classifier picklable: functions are made anew."""
    return _unpickle, (
      config_lib.to_json(self.config),
      self.phase,
      self.head,
      self.classes,
      *jax.tree.map(np.asarray, (self.params, self.stats)),
    )

  def predict_proba(self, images: Sequence | np.ndarray) -> np.ndarray:
    """Returns the probability of each class for each image.

    Args:
      images: see `FewShotLearner.fit`.

    Returns:
      [N, W] float32; each row sums to 1, columns are in the order of `classes`.

    Raises:
      UserError: the images are invalid.
    """
    logits = self.logits(prepare_images(self.config, images))
    return softmax(logits, axis=-1)

  def predict(self, images: Sequence | np.ndarray) -> np.ndarray:
    """Returns the most probable class of each image.

    The prediction for an image does not depend on the other images, unless the
    checkpoint was loaded with norm='batch'.

    Args:
      images: see `FewShotLearner.fit`.

    Returns:
      [N], labels as they were passed to `fit`.

    Raises:
      UserError: the images are invalid.
    """
    return self.classes[self.predict_proba(images).argmax(-1)]

  def save(self, path: str | os.PathLike) -> None:
    """Writes the classifier to a file for `maml_jax.load_classifier`.

    An existing file is replaced atomically.

    Args:
      path: such as 'model.npz'.

    Raises:
      UserError: the file cannot be written.
    """
    metadata = {
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
    with (
      oserror_as_user_error(path),
      replace_file(path) as new,
      new.open('wb') as file,
    ):
      facts = np.array(json.dumps(metadata))
      np.savez(file, allow_pickle=False, facts=facts, **arrays)


def load_classifier(path: str | os.PathLike) -> Classifier:
  """Loads a file of `Classifier.save`, which cannot contain code.

  Args:
    path: the file.

  Raises:
    UserError: the file does not exist, is damaged or was not written by
      `Classifier.save`.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f'no such file: {path}')
  require_devices()
  try:
    with open(path, 'rb') as file, np.load(file, allow_pickle=False) as npz:
      arrays = dict(npz)
    metadata = json.loads(str(arrays.pop('facts')))
    if metadata['format'] != FORMAT_VERSION:
      raise ValueError(
        f'its format version is {metadata["format"]}, expected {FORMAT_VERSION}'
      )
    trees = _unflatten(arrays)
    return make_classifier(
      config_lib.from_json(metadata['config']),
      _phase_from_json(metadata['phase']),
      metadata['head'],
      np.array(metadata['classes']),
      trees['params'],
      trees['stats'],
    )
  except Exception as error:  # the file may contain anything
    reason = str(error).partition('\n')[0][:100]
    raise UserError(
      f'{path} is not a model saved by --mode=adapt, or it is damaged: {reason}'
    ) from error


def make_classifier(
  config: ConfigDict,
  phase: Phase,
  head: str,
  classes: np.ndarray,
  params: PyTree,
  stats: PyTree,
) -> Classifier:
  """Returns the `Classifier` of adapted parameters."""
  learner, predict = _make_prediction_program(config_lib.to_json(config), phase)

  def logits(images):
    # Batch statistics must be computed over all images at once.
    n = len(images)
    size = n if is_transductive(phase.norm) else BATCH_SIZE
    batches = [np.zeros((0, len(classes)), np.float32)]
    for start in range(0, n, max(size, 1)):
      batch = images[start : start + size]
      padding = [(0, size - len(batch))] + [(0, 0)] * (images.ndim - 1)
      with setup.matmul_precision(config):
        padded_logits = predict(params, stats, np.pad(batch, padding))
      batches.append(np.asarray(padded_logits)[: len(batch)])
    return np.concatenate(batches)

  return Classifier(
    classes, learner, params, stats, config, phase, head, logits
  )


def _unpickle(config_json: str, *args) -> Classifier:
  return make_classifier(config_lib.from_json(config_json), *args)


@functools.cache
def _make_prediction_program(
  config_json: str, phase: Phase
) -> tuple[Learner, Callable]:
  """Returns the learner of a phase and its jitted `predict` of uint8 images."""
  config = config_lib.from_json(config_json)
  learner = setup.phase_learner(config, phase)

  @jax.jit
  def predict(params, stats, images):
    return learner.predict(params, stats, to_model_inputs(config, images))

  return learner, predict


def _phase_from_json(fields: dict) -> Phase:
  """Inverts `Phase._asdict` after a round trip through JSON."""
  norm = fields['norm']
  if not isinstance(norm, str):  # JSON has no tuples
    norm = tuple(map(tuple, norm))
  return Phase(**{**fields, 'norm': norm})


def _unflatten(arrays: dict[str, np.ndarray]) -> dict:
  """Converts {'params/encoder/...': array} to nested dicts."""
  trees: dict = {'params': {}, 'stats': {}}
  for name, array in arrays.items():
    *parents, last = name.split('/')
    tree = trees
    for parent in parents:
      tree = tree.setdefault(parent, {})
    tree[last] = array
  return trees
