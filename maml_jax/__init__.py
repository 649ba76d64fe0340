"""Few-shot meta-learning in JAX: MAML and its variants.

    learner = maml_jax.load('checkpoints/glyphs_5w1s')
    classifier = learner.fit(images, labels)
    classifier.predict(other_images)

The algorithm, for any model and any loss, is in `maml_jax.learner`.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from maml_jax.fewshot.adaptation import FewShotLearner
  from maml_jax.fewshot.classifier import Classifier

__all__ = ['load', 'load_classifier']

__version__ = '0.1.0'


def load(
  checkpoint: str | os.PathLike,
  *,
  which: str = 'best',
  norm: str | tuple | None = None,
) -> 'FewShotLearner':
  """Loads a checkpoint that adapts to a few images of new classes.

      learner = maml_jax.load('checkpoints/glyphs_5w1s')
      classifier = learner.fit(images, labels)  # NumPy arrays of any size
      classifier.predict(other_images)

  It runs wherever JAX runs, and needs neither the data set of the training nor
  its config. The attributes `learner`, `params` and `stats` of the result give
  access to the functions of `maml_jax.learner`.

  Args:
    checkpoint: a workdir or the directory of one checkpoint.
    which: 'best' (on validation) or 'latest', if it is a workdir.
    norm: a batch norm mode, see `maml_jax.models.norm`. Default: the mode of
      the checkpoint, but 'support' instead of 'batch', because with 'batch'
      predictions depend on the other images that are classified.

  Returns:
    A `maml_jax.fewshot.adaptation.FewShotLearner`.

  Raises:
    maml_jax.utils.errors.UserError: there is no valid checkpoint, or it lacks
      the statistics that `norm` needs.
  """
  # Imports JAX, Flax and Orbax, which takes seconds.
  from maml_jax.fewshot import adaptation

  return adaptation.load(checkpoint, which=which, norm=norm)


def load_classifier(path: str | os.PathLike) -> 'Classifier':
  """Loads a classifier that `Classifier.save` or --mode=adapt has saved.

      classifier = maml_jax.load_classifier('adapted/birds/model.npz')
      classifier.predict(images)

  Args:
    path: the file.

  Returns:
    A `maml_jax.fewshot.classifier.Classifier`.

  Raises:
    maml_jax.utils.errors.UserError: the file does not exist, is damaged or was
      not saved by `Classifier.save`.
  """
  from maml_jax.fewshot import classifier  # imports JAX, which takes seconds

  return classifier.load_classifier(path)
