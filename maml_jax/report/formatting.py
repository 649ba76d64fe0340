"""Formats numbers and commands for the report.

`metric` is 'accuracy', in [0, 1] and shown in percent, or 'loss'.
"""

import shlex

from markupsafe import Markup

from maml_jax.experiment.formatting import format_metric
from maml_jax.report.run_groups import RunGroup

__all__ = [
  'eval_command',
  'format_difference',
  'format_number',
  'format_share',
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


def format_share(value: float) -> str:
  """Returns '20 %' for 0.2, '4.8 %' for 0.048."""
  return f'{100 * value:.3g}{PERCENT}' if value >= 0.0005 else f'0{PERCENT}'


def tag(word: str, kind: str | None = None) -> Markup:
  """Returns a word with an outline, and a color for the kinds in style.css."""
  return Markup('<span class="tag {}">{}</span>').format(kind or word, word)


def eval_command(group: RunGroup, *flags: str) -> str:
  """Returns the command that evaluates a run."""
  path = group.runs[0].path
  words = ['python', 'main.py', '--mode=eval', f'--workdir={path}']
  results = [e.result for run in group.runs for e in run.evaluations]
  source = results[0].get('checkpoint') if results else None
  if source and not (path / 'checkpoints').is_dir():
    words.append(f'--checkpoint={source}')
  return shlex.join([*words, *flags])
