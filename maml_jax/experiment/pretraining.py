"""Pre-training: a classifier of all training classes, whose encoder is kept.

Each batch takes the place of a task, so that devices, chunks, resumption and
validation are those of meta-training. Legend: N images of a batch, W classes of
the training split, D features.
"""

import jax
import optax
from ml_collections import ConfigDict

from maml_jax.experiment import setup
from maml_jax.learner import Learner, accuracy
from maml_jax.models.layers import normalize
from maml_jax.types import Array

__all__ = ['cosine_logits', 'pretraining_learner']


def pretraining_learner(config: ConfigDict, num_classes: int) -> Learner:
  """Returns a learner whose loss is that of a classifier of all classes.

  Its `loss(params, stats, episode)` ignores the support set; the head has one
  output per class. The running averages of batch norm are updated.

  Args:
    config: see `maml_jax.default_config`, section `pretrain`.
    num_classes: W.
  """
  phase = setup.train_phase(config)._replace(ways=num_classes, num_steps=0)
  learner = setup.phase_learner(config, phase, head='learned')
  model = setup.phase_model(config, phase)
  pretrain = config.pretrain

  def loss(params, stats, episode, epoch=0):
    del epoch
    images, labels = episode.query
    if pretrain.head == 'linear':
      logits, stats = model.apply(params, stats, images, train=True)
    else:
      assert model.features is not None
      features, stats = model.features(params, stats, images, train=True)
      kernel = params['classifier']['kernel']
      logits = config.model.temperature * cosine_logits(features, kernel)
    targets = jax.nn.one_hot(labels, num_classes, dtype=logits.dtype)
    targets = optax.smooth_labels(targets, pretrain.label_smoothing)
    value = optax.softmax_cross_entropy(logits, targets).mean()
    metrics = {'loss': value, 'accuracy': accuracy(logits, labels)}
    return value, (stats, metrics)

  return learner._replace(loss=loss)


def cosine_logits(features: Array, kernel: Array) -> Array:
  """Returns cosines [N, W] of features [N, D] and the columns of a kernel.

  The head of Baseline++, Chen et al. 2019, arXiv 1904.04232.
  """
  return normalize(features) @ normalize(kernel, axis=0)
