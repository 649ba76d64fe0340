"""Formats numbers, evaluation setups and commands for the report.

`metric` is 'accuracy', in [0, 1] and shown in percent, or 'loss'.
"""

import shlex
from collections.abc import Sequence

from markupsafe import Markup

from maml_jax.experiment.formatting import describe_data, format_metric
from maml_jax.experiment.metrics import primary_metric
from maml_jax.report.run_groups import EvaluationGroup, RunGroup

__all__ = [
  'describe_conditions',
  'describe_data',
  'describe_interval',
  'describe_setup',
  'describe_task',
  'describe_version',
  'eval_command',
  'format_difference',
  'format_margin',
  'format_norm',
  'format_number',
  'format_share',
  'pluralize',
  'protocol',
  'protocol_tag',
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


def protocol_tag(result: dict) -> Markup | str:
  """Returns the protocol as a tag; a dash for a regression."""
  is_accuracy = primary_metric(result) == 'accuracy'
  return tag(protocol(result)) if is_accuracy else '–'


def tag(word: str, kind: str | None = None) -> Markup:
  """Returns a word with an outline.

  Args:
    word: such as 'transductive' or 'holds'.
    kind: 'good' or 'bad' for a color; 'transductive' and 'inductive' have one.
  """
  return Markup('<span class="tag {}">{}</span>').format(kind or word, word)


def protocol(result: dict) -> str:
  """Returns 'transductive' or 'inductive'."""
  return 'transductive' if result['transductive'] else 'inductive'


def describe_task(result: dict) -> str:
  """Returns '5-way 1-shot', or '10 points' for a regression."""
  if _classifies(result):
    return f'{result["ways"]}-way {result["shots"]}-shot'
  return pluralize(result.get('shots', 0), 'point')


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


def describe_interval(group: EvaluationGroup) -> str:
  """Returns the meaning of ± for an evaluation."""
  seeds, tasks = len(group.evaluations), f'{group.result["num_tasks"]:,} tasks'
  over = f'{seeds} seeds, each evaluated on {tasks}' if seeds > 1 else tasks
  return f'95 % confidence interval over {over}'


def describe_version(result: dict) -> str:
  """Returns the versions of maml_jax and jax that produced a result."""
  commit = f' ({result["commit"]})' if result.get('commit') else ''
  version = result.get('version', '?')
  return f'maml_jax {version}{commit}, jax {result.get("jax", "?")}'


def eval_command(group: RunGroup, *flags: str) -> str:
  """Returns the command that evaluates a run."""
  words = ['python', 'main.py', '--mode=eval', f'--workdir={group.path}']
  sources = [e.result.get('checkpoint') for e in group.saved]
  if not (group.path / 'checkpoints').is_dir() and sources and sources[0]:
    words.append(f'--checkpoint={sources[0]}')
  return shlex.join([*words, *flags])


def _classifies(result: dict) -> bool:
  return result.get('ways', 1) > 1
