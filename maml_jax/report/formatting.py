"""Formats numbers, evaluation setups and commands for the report.

`metric` is 'accuracy', in [0, 1] and shown in percent, or 'loss'.
"""

import shlex
from collections.abc import Sequence

from maml_jax.experiment.formatting import describe_data
from maml_jax.report import markup
from maml_jax.report.run_groups import EvaluationGroup, RunGroup
from maml_jax.report.statistics import combine_seeds

__all__ = [
  'INDUCTIVE',
  'TRANSDUCTIVE',
  'average_field',
  'describe_conditions',
  'describe_interval',
  'describe_queries',
  'describe_setup',
  'describe_task',
  'describe_version',
  'eval_command',
  'format_difference',
  'format_digits',
  'format_margin',
  'format_norm',
  'format_number',
  'format_share',
  'mean_with_interval',
  'pluralize',
  'protocol',
  'protocol_tag',
]

NO_BREAK_SPACE = '\u00a0'
PERCENT = f'{NO_BREAK_SPACE}%'
TRANSDUCTIVE = (
  'the query images of a task are classified jointly, so a prediction may '
  'depend on the other query images'
)
INDUCTIVE = 'each query image is classified independently'


def format_number(
  metric: str, value: float, interval: float | None = None
) -> str:
  """Returns '48.70 ± 1.84 %' for an accuracy, '0.734 ± 0.012' for a loss."""
  mean, margin = format_digits(metric, value, interval)
  return mean + margin + PERCENT * (metric == 'accuracy')


def format_digits(
  metric: str, value: float, interval: float | None = None
) -> tuple[str, str]:
  """Returns '48.70' and ' ± 1.84', without the percent sign.

  The second string is '' if there is no interval.
  """
  scale, decimals = (100, 2) if metric == 'accuracy' else (1, 3)

  def digits(x):
    text = f'{scale * x:.{decimals}f}'.replace('-', '−')
    return text.replace('inf', '∞')  # the interval of a single task

  if interval is None:
    return digits(value), ''
  return digits(value), f' ±{NO_BREAK_SPACE}{digits(interval)}'


def format_margin(metric: str, interval: float) -> str:
  """Returns '± 1.84 %' for an accuracy, '± 0.012' for a loss."""
  return f'±{NO_BREAK_SPACE}{format_number(metric, interval)}'


def format_share(value: float) -> str:
  """Returns '20 %' for 0.2, '4.8 %' for 0.048."""
  return f'{100 * value:.3g}{PERCENT}' if value >= 0.0005 else f'0{PERCENT}'


def format_difference(metric: str, value: float, interval: float | None) -> str:
  """Returns '+1.20 ± 0.30' or '−1.20 ± 0.30'; accuracies in percent."""
  text = ''.join(format_digits(metric, value, interval))
  return text if value < 0 else f'+{text}'


def pluralize(count: int, noun: str) -> str:
  """Returns '1 task' or '10,000 tasks'."""
  ending = '' if count == 1 else 'es' if noun.endswith('s') else 's'
  return f'{count:,} {noun}{ending}'


def format_norm(value: str | Sequence[tuple[str, str]] | None) -> str:
  """Formats a norm mode, or the norm modes per layer."""
  if isinstance(value, str):
    return value
  return ', '.join(f'{pattern}: {mode}' for pattern, mode in value or ())


def protocol(result: dict) -> str:
  """Returns 'transductive' or 'inductive'."""
  return 'transductive' if result['transductive'] else 'inductive'


def protocol_tag(result: dict) -> markup.Html:
  """Returns the protocol as an HTML tag in its color."""
  return markup.tag(protocol(result), protocol(result))


def describe_task(result: dict) -> str:
  """Returns '5-way 1-shot', or '10 points' for a regression."""
  if _classifies(result):
    return f'{result["ways"]}-way {result["shots"]}-shot'
  return pluralize(result.get('shots', 0), 'point')


def describe_queries(count: int) -> str:
  """Returns '1 query' or '15 queries'."""
  return '1 query' if count == 1 else f'{count} queries'


def describe_conditions(result: dict) -> str:
  """Describes the tasks and the learner, without the protocol."""
  parts = [
    f'{pluralize(result["num_tasks"], "task")} of the '
    f'{describe_data(result, " split")}',
    describe_task(result),
  ]
  if 'queries' in result:  # a grid has several values
    noun = 'query image' if _classifies(result) else 'query point'
    count = pluralize(result['queries'], noun)
    parts.append(count + ' per class' * _classifies(result))
    parts.append(pluralize(result['num_steps'], 'inner step'))
    if _classifies(result):
      parts.append(f'norm mode {format_norm(result["norm"])}')
  return ', '.join(parts)


def describe_setup(result: dict) -> str:
  """Returns `describe_conditions`, with the protocol for classification."""
  text = describe_conditions(result)
  if _classifies(result) and 'queries' in result:
    return f'{text}, {protocol(result)}'
  return text


def mean_with_interval(group: EvaluationGroup) -> tuple[float, float | None]:
  """Returns the primary metric over all seeds with its interval."""
  results, metric = group.results, group.metric
  return combine_seeds(
    [r[metric] for r in results], [r.get('interval') for r in results]
  )


def average_field(results: Sequence[dict], name: str) -> float | None:
  """Returns the mean of a field over the seeds that have it, if any."""
  known = [r[name] for r in results if r.get(name) is not None]
  return sum(known) / len(known) if known else None


def describe_interval(group: EvaluationGroup) -> str:
  """Returns the meaning of ± for an evaluation."""
  seeds, tasks = len(group.evaluations), group.result['num_tasks']
  if seeds > 1:
    return (
      f'95 % confidence interval over {seeds} seeds, each evaluated on '
      f'{tasks:,} tasks'
    )
  return f'95 % confidence interval over {tasks:,} tasks'


def describe_version(result: dict) -> str:
  """Returns the versions of maml_jax and jax that produced a result."""
  version = f'maml_jax {result.get("version", "?")}'
  if result.get('commit'):
    version += f' ({result["commit"]})'
  return f'{version}, jax {result.get("jax", "?")}'


def eval_command(group: RunGroup, *flags: str) -> str:
  """Returns the command that evaluates a run."""
  words = ['python', 'main.py', '--mode=eval', f'--workdir={group.path}']
  sources = [
    e.result.get('checkpoint')
    for run in group.runs
    for e in (*run.evaluations, *run.grids)
  ]
  if not (group.path / 'checkpoints').is_dir() and sources and sources[0]:
    words.append(f'--checkpoint={sources[0]}')
  return shlex.join([*words, *flags])


def _classifies(result: dict) -> bool:
  return result.get('ways', 1) > 1
