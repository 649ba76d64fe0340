"""Measures the baselines of `baselines` on the tasks of an evaluation."""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from maml_jax import config as config_lib
from maml_jax.evaluation import baselines
from maml_jax.evaluation.measurement import Evaluation
from maml_jax.evaluation.statistics import (
  mean_interval,
  paired_difference,
)
from maml_jax.experiment import setup
from maml_jax.experiment.transfer import transfer_params
from maml_jax.inner_loop import model_params
from maml_jax.learner import Learner, accuracy
from maml_jax.utils import console
from maml_jax.utils.errors import UserError

__all__ = ['measure_baselines']

# Training images whose mean features center those of a baseline.
MEAN_IMAGES = 2000
MEAN_BATCH_SIZE = 50


def measure_baselines(
  e: Evaluation, maml_accuracy: np.ndarray
) -> tuple[list[dict], dict]:
  """Measures the baselines of `baselines` on the same tasks."""
  # Its inner loop only collects the statistics that the norm mode needs.
  not_adapted = setup.phase_learner(e.config, e.phase, frozen=('*',))
  features = setup.phase_model(e.config, e.phase).features
  assert features is not None
  center = _mean_train_features(e, features, not_adapted)

  def measure(params, stats, episode):
    params, stats, _ = not_adapted.adapt(params, stats, episode.support)
    support, query = (
      features(params, stats, batch.inputs, train=False)[0] for batch in episode
    )
    logits = not_adapted.predict(params, stats, episode.query.inputs)
    outputs = {'no_adaptation': logits}
    targets = episode.support.targets
    for name, (fn, _) in baselines.FEATURE_BASELINES.items():
      outputs[name] = fn(support, targets, query, e.phase.ways)
    if center is not None:
      outputs['simple_shot'] = baselines.simple_shot(
        support - center, targets, query - center, e.phase.ways
      )
    return {
      f'baseline_{name}': accuracy(logits, episode.query.targets)
      for name, logits in outputs.items()
    }

  arrays = e.measure('baselines', not_adapted, measure)
  return _compare_baselines(arrays, maml_accuracy), arrays


def _compare_baselines(
  arrays: Mapping[str, np.ndarray], maml_accuracy: np.ndarray
) -> list[dict]:
  """Returns accuracy and paired difference from MAML of each baseline."""
  descriptions = {
    name: text for name, (_, text) in baselines.FEATURE_BASELINES.items()
  }
  descriptions['simple_shot'] = (
    'nearest class mean of centered, normalized features (SimpleShot)'
  )
  descriptions['no_adaptation'] = 'the meta-learned initialization, not adapted'
  rows = []
  for key, values in arrays.items():
    name = key.removeprefix('baseline_')
    mean, interval = mean_interval(values)
    difference, half_width = paired_difference(values, maml_accuracy)
    rows.append(
      {
        'name': name,
        'about': descriptions[name],
        'accuracy': mean,
        'interval': interval,
        'difference': difference,
        'difference_interval': half_width,
      }
    )
  return rows


def _mean_train_features(
  e: Evaluation, features: Callable, learner: Learner
) -> np.ndarray | None:
  """Returns the mean features of training images, [1, D], for SimpleShot.

  The images are normalized by running averages if the norm mode has them, and
  otherwise by the moments of a batch. Returns None without training images.
  """
  config = e.config
  try:
    dataset = setup.load_split(config, setup.train_phase(config))
  except UserError as error:
    console.print_warning(
      'skipping the baseline simple_shot, which needs the mean of the training '
      f'features: {error}'
    )
    return None
  per_class = -(-MEAN_IMAGES // len(dataset.size))
  rows = np.concatenate(
    [
      row[: min(size, per_class)]
      for row, size in zip(dataset.index, dataset.size, strict=True)
    ]
  )
  params, stats = transfer_params(learner, e.saved.params, e.saved.stats)
  params = model_params(params)
  modes = config_lib.norm_modes('norm', e.phase.norm)
  train = set(modes) != {'global'}

  @jax.jit
  def mean_features(images):
    inputs = setup.to_model_inputs(config, images)
    return features(params, stats, inputs, train=train)[0].mean(0)

  # Batches of one size, with images of many classes each.
  batches = np.random.RandomState(0).permutation(rows)
  size = min(MEAN_BATCH_SIZE, len(rows))
  batches = batches[: len(rows) // size * size].reshape(-1, size)
  with setup.matmul_precision(config):
    means = [np.asarray(mean_features(dataset.images[b])) for b in batches]
  return np.mean(means, 0)[None]
