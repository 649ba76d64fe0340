"""Text for metrics and for the protocol under which they were measured."""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from maml_jax.experiment.metrics import is_transductive, primary_metric

__all__ = [
  'describe_data',
  'describe_protocol',
  'describe_setup',
  'describe_task',
  'describe_validation_protocol',
  'format_metric',
  'format_metrics',
  'format_norm',
  'format_percent',
  'norm_label',
  'pluralize',
  'protocol',
]


def pluralize(count: int, noun: str, plural: str = '') -> str:
  """Returns '1 task' or '10,000 tasks'."""
  return f'{count:,} {noun if count == 1 else plural or noun + "s"}'


def format_norm(value: str | Sequence[tuple[str, str]] | None) -> str:
  """Formats a norm mode, or the norm modes per layer."""
  if isinstance(value, str):
    return value
  return ', '.join(f'{pattern}: {mode}' for pattern, mode in value or ())


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


def describe_task(result: Mapping) -> str:
  """Returns '5-way 1-shot', or '10 points' for a regression."""
  if result.get('ways', 1) > 1:
    return f'{result["ways"]}-way {result["shots"]}-shot'
  return pluralize(result.get('shots', 0), 'point')


def describe_setup(result: Mapping, *, with_protocol: bool = True) -> str:
  """Describes the tasks and the learner."""
  tasks = pluralize(result['num_tasks'], 'task')
  parts = [f'{tasks} of the {describe_data(result, " split")}']
  parts.append(describe_task(result))
  classifies = result.get('ways', 1) > 1
  if 'queries' in result:  # a grid has several values
    noun = 'query image' if classifies else 'query point'
    queries = pluralize(result['queries'], noun) + ' per class' * classifies
    parts += [queries, pluralize(result['num_steps'], 'inner step')]
    if classifies:
      parts.append(f'norm mode {format_norm(result["norm"])}')
      parts += [protocol(result)] * with_protocol
  return ', '.join(parts)


def protocol(result: Mapping) -> str:
  """Returns 'transductive' or 'inductive'."""
  return 'transductive' if result['transductive'] else 'inductive'


def describe_protocol(norm: str | tuple, queries: int) -> str:
  """Returns, for example, 'transductive, 15 queries per class'."""
  name = protocol({'transductive': is_transductive(norm)})
  return f'{name}, {pluralize(queries, "query", "queries")} per class'


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
