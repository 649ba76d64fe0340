"""Formats numbers, evaluation setups and commands for the report.

`metric` is 'accuracy', in [0, 1] and shown in percent, or 'loss'.
"""

import shlex
from collections.abc import Sequence

from markupsafe import Markup

from maml_jax.experiment.formatting import describe_data, format_metric
from maml_jax.report.run_groups import RunGroup

__all__ = [
  'describe_conditions',
  'describe_data',
  'describe_setup',
  'describe_task',
  'eval_command',
  'format_difference',
  'format_margin',
  'format_norm',
  'format_number',
  'format_share',
  'pluralize',
  'protocol',
  'tag',
]

NO_BREAK_SPACE = '\u00a0'
PERCENT = f'{NO_BREAK_SPACE}%'
# The interval of a single task is infinite.
TYPOGRAPHY = {'+-': f'±{NO_BREAK_SPACE}', ' %': PERCENT, '-': '−', 'inf': '∞'}


def format_number(
  metric: str, value: float, interval: float | None = None
) -> str:
  """Returns '48.70 ± 1.84 %' for an accuracy, '0.734 ± 0.012' for a loss."""
  text = format_metric(metric, value, interval)
  for plain, typographic in TYPOGRAPHY.items():
    text = text.replace(plain, typographic)
  return text


def format_difference(
  metric: str, value: float, interval: float | None = None
) -> str:
  """Returns '+1.20 ± 0.30' or '−1.20 ± 0.30'; accuracies in percent."""
  text = format_number(metric, value, interval).removesuffix(PERCENT)
  return text if value < 0 else f'+{text}'


def format_margin(metric: str, interval: float) -> str:
  """Returns '± 1.84 %' for an accuracy, '± 0.012' for a loss."""
  return f'±{NO_BREAK_SPACE}{format_number(metric, interval)}'


def format_share(value: float) -> str:
  """Returns '20 %' for 0.2, '4.8 %' for 0.048."""
  return f'{100 * value:.3g}{PERCENT}' if value >= 0.0005 else f'0{PERCENT}'


def pluralize(count: int, noun: str, plural: str = '') -> str:
  """Returns '1 task' or '10,000 tasks'."""
  return f'{count:,} {noun if count == 1 else plural or noun + "s"}'


def format_norm(value: str | Sequence[tuple[str, str]] | None) -> str:
  """Formats a norm mode, or the norm modes per layer."""
  if isinstance(value, str):
    return value
  return ', '.join(f'{pattern}: {mode}' for pattern, mode in value or ())


def tag(word: str, kind: str | None = None) -> Markup:
  """Returns a word with an outline, and a color for the kinds in style.css."""
  return Markup('<span class="tag {}">{}</span>').format(kind or word, word)


def protocol(result: dict) -> str:
  """Returns 'transductive' or 'inductive'."""
  return 'transductive' if result['transductive'] else 'inductive'


def describe_task(result: dict) -> str:
  """Returns '5-way 1-shot', or '10 points' for a regression."""
  if result.get('ways', 1) > 1:
    return f'{result["ways"]}-way {result["shots"]}-shot'
  return pluralize(result.get('shots', 0), 'point')


def describe_conditions(result: dict) -> str:
  """Describes the tasks and the learner, without the protocol."""
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
  return ', '.join(parts)


def describe_setup(result: dict) -> str:
  """Returns `describe_conditions`, with the protocol for classification."""
  text = describe_conditions(result)
  classifies = result.get('ways', 1) > 1 and 'queries' in result
  return f'{text}, {protocol(result)}' if classifies else text


def eval_command(group: RunGroup, *flags: str) -> str:
  """Returns the command that evaluates a run."""
  path = group.runs[0].path
  words = ['python', 'main.py', '--mode=eval', f'--workdir={path}']
  results = [e.result for run in group.runs for e in run.evaluations]
  source = results[0].get('checkpoint') if results else None
  if source and not (path / 'checkpoints').is_dir():
    words.append(f'--checkpoint={source}')
  return shlex.join([*words, *flags])
