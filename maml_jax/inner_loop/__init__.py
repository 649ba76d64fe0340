"""The inner loop: K gradient steps on the support set of one task.

MAML, Finn et al. 2017, arXiv 1703.03400, equation 1, and its relatives, as
settings of `InnerConfig` that combine freely: momentum, weight decay, Adam,
frozen parameters, learned and per-step learning rates (Meta-SGD, MAML++),
learned preconditioners (Meta-Curvature), ALFA and a proximal term (iMAML).

The learned quantities of the inner loop besides the initial parameters, such as
learning rates, are stored under `params['inner']`, see `learned`.
"""

from maml_jax.inner_loop.learned import (
  clip_learned_rates,
  init_learned,
  is_per_step,
  learned_ranges,
  model_params,
  rate_table,
  split_learned,
  transfer_learned,
)
from maml_jax.inner_loop.loop import adapt, adapt_and_observe
from maml_jax.inner_loop.parameters import (
  OUTER_ONLY,
  flatten,
  param_labels,
  path_matches,
  require_adapted_head,
  require_matches,
  reset_params,
  split_adapted,
)
from maml_jax.inner_loop.support import (
  balanced_loss,
  class_means,
  with_prototypes,
)

__all__ = [
  'OUTER_ONLY',
  'adapt',
  'adapt_and_observe',
  'balanced_loss',
  'class_means',
  'clip_learned_rates',
  'flatten',
  'is_per_step',
  'init_learned',
  'learned_ranges',
  'model_params',
  'param_labels',
  'path_matches',
  'rate_table',
  'require_adapted_head',
  'require_matches',
  'reset_params',
  'split_adapted',
  'split_learned',
  'transfer_learned',
  'with_prototypes',
]
