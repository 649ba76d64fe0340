"""How numbers, evaluations and commands are worded on the page."""

import shlex
from collections.abc import Sequence

from maml_jax.report import markup
from maml_jax.report.runs import EvaluationGroup, RunGroup
from maml_jax.report.statistics import over_seeds

NO_BREAK_SPACE = '\u00a0'  # a space at which no line is broken
PERCENT = f'{NO_BREAK_SPACE}%'
TRANSDUCTIVE = (
  'the query images of a task are answered together, and an answer may depend '
  'on the others'
)
INDUCTIVE = 'each query image is answered by itself'


def format_number(
  score: str, value: float, interval: float | None = None
) -> str:
  """'48.70 ± 1.84 %' of an accuracy, '0.734 ± 0.012' of a loss."""
  mean, half = format_digits(score, value, interval)
  return mean + half + PERCENT * (score == 'accuracy')


def format_digits(
  score: str, value: float, interval: float | None = None
) -> tuple[str, str]:
  """'48.70' and ' ± 1.84', or '' of no interval; accuracies in points of 1 %."""
  scale, places = (100, 2) if score == 'accuracy' else (1, 3)
  mean = f'{scale * value:.{places}f}'.replace('-', '−')
  if interval is None:
    return mean, ''
  return mean, f' ±{NO_BREAK_SPACE}{scale * interval:.{places}f}'


def format_margin(score: str, interval: float) -> str:
  """'± 1.84 %'."""
  return f'±{NO_BREAK_SPACE}{format_number(score, interval)}'


def format_share(value: float) -> str:
  """'20 %' of 0.2, '4.8 %' of 0.048."""
  return f'{100 * value:.3g}{PERCENT}' if value >= 0.0005 else f'0{PERCENT}'


def format_difference(score: str, value: float, interval: float | None) -> str:
  """'+1.20 ± 0.30' or '−1.20 ± 0.30', of accuracies in points of 1 %."""
  text = ''.join(format_digits(score, value, interval))
  return text if value < 0 else f'+{text}'


def pluralize(count: int, noun: str) -> str:
  """'1 task', '10,000 tasks'."""
  ending = '' if count == 1 else 'es' if noun.endswith('s') else 's'
  return f'{count:,} {noun}{ending}'


def format_norm(value: object) -> str:
  """A norm mode, or those of the layers."""
  if isinstance(value, str):
    return value
  return ', '.join(f'{pattern}: {mode}' for pattern, mode in value or ())


def protocol(facts: dict) -> str:
  return 'transductive' if facts['transductive'] else 'inductive'


def protocol_tag(facts: dict) -> markup.Html:
  return markup.tag(protocol(facts), protocol(facts))


def describe_task(facts: dict) -> str:
  """'5-way 1-shot', or '10 points' of a regression."""
  if facts.get('ways', 1) > 1:
    return f'{facts["ways"]}-way {facts["shots"]}-shot'
  return pluralize(facts.get('shots', 0), 'point')


def describe_conditions(facts: dict) -> str:
  """Under what was measured, but for the kind."""
  parts = [
    f'{pluralize(facts["num_tasks"], "task")} of {facts["data"]} {facts["split"]}',
    describe_task(facts),
  ]
  if 'queries' in facts:  # a grid has many
    noun = 'query point'
    if facts.get('ways', 1) > 1:
      noun = 'query image'
    count = pluralize(facts['queries'], noun)
    parts.append(count + ' per class' * (facts.get('ways', 1) > 1))
    parts.append(pluralize(facts['num_steps'], 'inner step'))
    if facts.get('ways', 1) > 1:
      parts.append(f'norm {format_norm(facts["norm"])}')
  return ', '.join(parts)


def describe_setup(facts: dict) -> str:
  """`conditions`, with the kind where there is one."""
  text = describe_conditions(facts)
  classifies = facts.get('ways', 1) > 1 and 'queries' in facts
  return f'{text}, {protocol(facts)}' if classifies else text


def mean_with_interval(measured: EvaluationGroup) -> tuple[float, float | None]:
  """What counts, over the seeds, with its interval."""
  facts, score = [e.facts for e in measured.evaluations], measured.score
  return over_seeds(
    [f[score] for f in facts], [f.get('interval') for f in facts]
  )


def average_field(facts: Sequence[dict], name: str) -> float | None:
  """The mean of a field over seeds, as far as it is known."""
  known = [f[name] for f in facts if f.get(name) is not None]
  return sum(known) / len(known) if known else None


def describe_interval(measured: EvaluationGroup) -> str:
  """What ± means."""
  seeds, tasks = len(measured.evaluations), measured.facts['num_tasks']
  if seeds > 1:
    return f'95 % interval over {seeds} seeds, each on {tasks:,} tasks'
  return f'95 % interval over {tasks:,} tasks'


def eval_command(group: RunGroup, *flags: str) -> str:
  """The command that measures a run."""
  words = ['python', 'main.py', '--mode=eval', f'--workdir={group.path}']
  sources = [
    e.facts.get('checkpoint')
    for run in group.runs
    for e in (*run.evaluations, *run.grids)
  ]
  if not (group.path / 'checkpoints').is_dir() and sources and sources[0]:
    words.append(f'--checkpoint={sources[0]}')
  return shlex.join([*words, *flags])
