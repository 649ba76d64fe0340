"""Text for metrics and for the protocol under which they were measured."""

from collections.abc import Mapping

from ml_collections import ConfigDict

from maml_jax.experiment.metrics import is_transductive, primary_metric

__all__ = [
  'describe_data',
  'describe_protocol',
  'describe_validation_protocol',
  'format_metric',
  'format_metrics',
  'format_percent',
  'norm_label',
]


def norm_label(norm: str | tuple) -> str:
  """Returns a norm mode, or 'layers' if layers have different modes."""
  return norm if isinstance(norm, str) else 'layers'


def describe_data(result: Mapping, noun: str = '') -> str:
  """Describes the data of a result of an evaluation.

  Args:
    result: its metadata.
    noun: is added to the name of the split, such as ' split'.

  Returns:
    For example 'cub test', or 'cub test (trained on mini_imagenet)'.
  """
  name, root = result['data'], result.get('data_root')
  if root is None:
    return f'{name} {result["split"]}{noun}'
  if name == 'folder':
    name = f'{name} {root}'
  trained = result['config']['data']['name']
  return f'{name} {result["split"]}{noun} (trained on {trained})'


def describe_protocol(norm: str | tuple, queries: int) -> str:
  """Returns, for example, 'transductive, 15 queries per class'."""
  protocol = 'transductive' if is_transductive(norm) else 'inductive'
  noun = 'query' if queries == 1 else 'queries'
  return f'{protocol}, {queries} {noun} per class'


def describe_validation_protocol(config: ConfigDict) -> str:
  """Returns the protocol of a run's validation, in parentheses."""
  if config.task.ways == 1:
    return f'({config.val.queries} queries)'
  return f'({describe_protocol(config.model.norm, config.val.queries)})'


def format_metrics(metrics: Mapping[str, float]) -> str:
  """Returns, for example, 'loss 1.234, accuracy 48.70 +-1.84 %'."""
  name, interval = primary_metric(metrics), metrics.get('interval')
  if name == 'loss':
    return f'loss {format_metric("loss", metrics["loss"], interval)}'
  accuracy = format_metric(name, metrics[name], interval)
  return f'loss {metrics["loss"]:.3f}, accuracy {accuracy}'


def format_metric(name: str, mean: float, interval: float | None = None) -> str:
  """Formats a metric with its interval: accuracies in percent, losses as is."""
  if name == 'accuracy':
    return format_percent(mean, interval)
  return f'{mean:.3f}' + ('' if interval is None else f' +-{interval:.3f}')


def format_percent(mean: float, interval: float | None = None) -> str:
  """Returns '48.70 %' for 0.487, '48.70 +-1.84 %' with interval 0.0184."""
  if interval is None:
    return f'{100 * mean:.2f} %'
  return f'{100 * mean:.2f} +-{100 * interval:.2f} %'
