"""The primary metric, and whether predictions are transductive."""

from collections.abc import Mapping

__all__ = ['is_better', 'is_transductive', 'primary_metric']


def primary_metric(metrics: Mapping) -> str:
  """Returns 'accuracy' or, for regression, 'loss'."""
  return 'accuracy' if 'accuracy' in metrics else 'loss'


def is_better(metrics: Mapping[str, float], old: Mapping[str, float]) -> bool:
  """Returns whether metrics are better than `old`; {} is always worse."""
  name = primary_metric(metrics)
  if not old:
    return True
  sign = 1 if name == 'accuracy' else -1
  return sign * metrics[name] > sign * old[name]


def is_transductive(norm: str | tuple) -> bool:
  """Returns whether predictions may depend on the other query images.

  Args:
    norm: a batch norm mode, or (pattern, mode) pairs; see `models.norm`.
  """
  modes = [norm] if isinstance(norm, str) else [mode for _, mode in norm]
  return 'batch' in modes
