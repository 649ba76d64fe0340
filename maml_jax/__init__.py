"""Few-shot meta-learning in JAX: MAML and its relatives.

    few = maml_jax.load('checkpoints/glyphs_5w1s')
    few.fit(images, labels).predict(others)

The algorithm, for any model, is in `maml_jax.learner`.
"""

__version__ = '0.1.0'


def load(checkpoint, *, which='best', norm=None):
  """Loads a checkpoint: learner, parameters and statistics, and what they do.

      few = maml_jax.load('checkpoints/glyphs_5w1s')
      classifier = few.fit(images, labels)  # NumPy arrays, whatever their size
      classifier.predict(others)

  Works where JAX does: CPU, GPU, TPU, Colab. Needs neither the data set nor the
  config of the training, and no internet. `few.learner`, `few.params` and
  `few.stats` are for those who want the functions of `maml_jax.learner`.

  Args:
    checkpoint: a directory: a run, or one checkpoint.
    which: of a run: 'best' (on validation) or 'latest'.
    norm: a mode of batch norm, see `maml_jax.models.norm`, instead of the
      checkpoint's. By default 'support' stands in the place of 'batch', under
      which answers would depend on which other images are asked about.

  Returns:
    A `maml_jax.classifier.Loaded`.

  Raises:
    maml_jax.errors.UserError: there is no sound checkpoint, or it lacks the
      statistics that `norm` needs.
  """
  from maml_jax.fewshot import (
    classifier,  # what this needs takes seconds to import
  )

  return classifier.load(checkpoint, which=which, norm=norm)


def load_classifier(path):
  """Reads a classifier that `Classifier.save` or --mode=adapt has written.

    maml_jax.load_classifier('adapted/birds/model.npz').predict(images)

  Args:
    path: of the file.

  Returns:
    A `maml_jax.classifier.Classifier`.

  Raises:
    maml_jax.errors.UserError: there is no such file, or it is no such one.
  """
  from maml_jax.fewshot import classifier

  return classifier.load_classifier(path)
