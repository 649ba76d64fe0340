"""Published methods as settings of the learner; see docs/methods.md."""

import math
from typing import Any

from ml_collections import ConfigDict

from maml_jax.utils.errors import check_choice

__all__ = ['METHODS', 'with_method', 'with_pretraining']

# Fields by method. They change second-order MAML whose batch norm is not
# adapted, such as preset mini_5w1s.
METHODS: dict[str, dict[str, Any]] = {
  # Raghu et al. 2020, arXiv 1909.09157
  'anil': {'inner.frozen': ('encoder',)},
  # Oh et al. 2021, arXiv 2008.08882
  'boil': {
    'inner.num_steps': 1,
    'inner.encoder_lr': 0.5,
    'inner.classifier_lr': 0.0,
    'eval.num_steps': 1,
  },
  # Li et al. 2017, arXiv 1707.09835
  'meta_sgd': {
    'inner.num_steps': 1,
    'inner.learn_lr': 'parameter',
    'eval.num_steps': 1,
  },
  # Antoniou et al. 2019, arXiv 1810.09502
  'mamlpp': {
    'inner.learn_lr': 'tensor',
    'inner.per_step': ('lr', 'bn'),
    'outer.loss_steps': 'all',
    'outer.loss_epochs': 15,
    'outer.schedule': 'cosine',
    'eval.num_steps': 5,
  },
  # Baik et al. 2020, arXiv 2011.00209
  'alfa': {
    'inner.rule': 'alfa',
    'inner.weight_decay': 5e-4,
    'eval.num_steps': 5,
  },
  # Park and Oliva 2019, arXiv 1902.03356
  'meta_curvature': {'inner.precondition': 'kronecker', 'eval.num_steps': 5},
  # Triantafillou et al. 2020, arXiv 1903.03096
  'proto_maml': {'inner.head': 'prototype', 'eval.num_steps': 5},
  # Snell et al. 2017, arXiv 1703.05175
  'proto_net': {
    'inner.head': 'prototype',
    'inner.num_steps': 0,
    'model.norm': 'global',
    'eval.num_steps': 0,
  },
  # Rajeswaran et al. 2019, arXiv 1909.04630
  'imaml': {
    'inner.num_steps': 16,
    'inner.proximal': 2.0,
    'outer.gradient': 'implicit',
    'outer.cg_steps': 5,
    'eval.num_steps': 16,
  },
  # Nichol et al. 2018, arXiv 1803.02999
  'reptile': {
    'task.shots': 15,
    'inner.num_steps': 8,
    'inner.encoder_lr': 0.001,
    'inner.classifier_lr': 0.001,
    'inner.optimizer': 'adam',
    'inner.b1': 0.0,
    'outer.gradient': 'reptile',
    'outer.optimizer': 'sgd',
    'outer.momentum': 0.0,
    'outer.lr': 1.0,
    'outer.schedule': 'cosine',
    'val.shots': 1,
    'val.num_steps': 50,
    'eval.shots': 1,
    'eval.num_steps': 50,
  },
  # Ye and Chao 2022, arXiv 2106.16245; from a pre-trained encoder
  'unicorn': {
    'inner.head': 'zero',
    'outer.gradient': 'first_order',
    'outer.temperature': 0.5,
    'eval.num_steps': 5,
  },
  # Zintgraf et al. 2019, arXiv 1810.03642
  'cavia': {
    'model.context_size': 100,
    'inner.frozen': ('!context',),
    'inner.zero': ('context',),
    'inner.num_steps': 2,
    'inner.encoder_lr': 1.0,
    'eval.num_steps': 2,
  },
}


# Fields of pre-training: a recipe for any image data set. Validation and
# evaluation classify by the cosine with the class means of the features, which
# is far better than their distance: for ConvNet4 and 1 shot, 48 instead of 33 %
# (Wang et al. 2019, arXiv 1911.04623, L2N and UN).
PRETRAINING = {
  'train.objective': 'classes',
  'data.augment_query': 'random_crop',
  'model.norm': 'global',
  'model.normalize_features': True,
  'model.temperature': 10.0,
  'inner.head': 'prototype',
  'inner.num_steps': 0,
  'outer.optimizer': 'sgd',
  'outer.lr': 0.05,
  'outer.weight_decay': 5e-4,
  'outer.clip_value': math.inf,
  'outer.schedule': 'cosine',
  'outer.milestones': (),
  'eval.num_steps': 0,
}


def with_method(config: ConfigDict, name: str) -> ConfigDict:
  """Changes a config to that of a published method.

  Args:
    config: of second-order MAML; changed in place.
    name: a key of `METHODS`.

  Returns:
    The config.

  Raises:
    UserError: the method is unknown.
  """
  check_choice('method', name, METHODS)
  config.update_from_flattened_dict(METHODS[name])
  return config


def with_pretraining(config: ConfigDict) -> ConfigDict:
  """Changes a config to pre-training, in place, and returns it."""
  config.update_from_flattened_dict(PRETRAINING)
  return config
