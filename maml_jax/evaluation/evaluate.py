"""Evaluates a checkpoint on many independent tasks."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from maml_jax.evaluation.baseline_results import measure_baselines
from maml_jax.evaluation.measurement import Evaluation
from maml_jax.evaluation.runner import learner_metrics
from maml_jax.evaluation.statistics import (
  expected_at_chance,
  mean_interval,
  share_at_chance,
  summarize,
)
from maml_jax.experiment import setup
from maml_jax.experiment.formatting import (
  describe_data,
  describe_protocol,
  describe_task,
  format_metric,
  format_percent,
  norm_label,
)
from maml_jax.experiment.metrics import is_transductive, primary_metric
from maml_jax.experiment.setup import Phase
from maml_jax.experiment.task_source import (
  eval_task_indices,
  task_classes,
)
from maml_jax.learner import accuracy
from maml_jax.utils import console, distributed

__all__ = [
  'describe_result',
  'evaluate',
  'print_summary',
]


def evaluate(
  config: ConfigDict,
  source: str | os.PathLike,
  workdir: str | os.PathLike | None = None,
  *,
  overwrite: bool = True,
) -> dict:
  """Evaluates a checkpoint on many tasks, prints and saves the result.

  Call `experiment.setup.configure_jax` first to use all CPU cores.

  Args:
    config: its `eval` section configures the evaluation; the rest must match
      the checkpoint, except for fields that only training uses.
    source: a workdir or one checkpoint.
    workdir: where results are saved; default `source`.
    overwrite: repeat the evaluation and replace a saved result.

  Returns:
    The content of WORKDIR/eval/NAME.json. NAME.npz holds the metrics per task.

  Raises:
    UserError: the checkpoint is missing, damaged, or has another config.
  """
  phase = setup.eval_phase(config)
  name = f'q{phase.queries}_k{phase.num_steps}_{norm_label(phase.norm)}'
  e = Evaluation(config, source, workdir or source, phase, name)
  if not overwrite and (result := distributed.on_main_process(e.find_saved)):
    return result
  metric_fns = {'accuracy': accuracy, 'predicted': lambda x, _: x.argmax(-1)}
  learner = setup.phase_learner(config, phase, metric_fns)
  metrics = e.measure('tasks', learner, learner_metrics(learner))
  result = {'kind': 'tasks', **_summarize(phase, metrics)}
  if 'predicted' in metrics:
    metrics['predicted'] = metrics['predicted'].astype(np.uint16)
    dataset = setup.load_split(config, phase)
    positions, _ = eval_task_indices(dataset, phase, e.num_tasks)
    metrics['classes'] = task_classes(dataset, positions)
  result['curve'], curve = _measure_curve(e)
  result['baselines'], baseline_metrics = None, {}
  if config.eval.baselines and 'accuracy' in metrics:
    rows, baseline_metrics = measure_baselines(e, metrics['accuracy'])
    result['baselines'] = rows
  return e.save(result, metrics | curve | baseline_metrics, print_summary)


def describe_result(result: dict) -> list[str]:
  """Returns lines that describe a result of `evaluate`."""
  name = primary_metric(result)
  protocol = describe_protocol(result['norm'], result['queries'])
  if name == 'loss':
    protocol = f'{result["queries"]} queries'
  task = f'{describe_task(result)}, {protocol}'
  more = f', median {format_metric(name, result["median"])}'
  if name == 'accuracy':
    more += f', {format_percent(result["at_chance"])} of tasks at chance'
    more += f', loss {result["loss"]:.3f}'
  mean = format_metric(name, result[name], result['interval'])
  lines = [
    f'{describe_data(result)}, {task}, {result["num_steps"]} '
    f'inner steps: {name} {mean} (95 % confidence interval over '
    f'{result["num_tasks"]} tasks){more}; checkpoint of step {result["step"]}'
  ]
  for row in result['baselines'] or ():
    mean = format_percent(row['accuracy'], row['interval'])
    difference = format_percent(row['difference'], row['difference_interval'])
    lines.append(
      f'  {row["name"]}, {protocol}: {mean}, {difference} compared with MAML'
    )
  if result['curve']:
    values = (format_metric(name, x) for x in result['curve']['query'][name])
    lines.append(
      f'  after 0, 1, ... inner steps, {protocol}, first '
      f'{result["curve"]["num_tasks"]} tasks: {" ".join(values)}'
    )
  return lines


def print_summary(result: dict) -> None:
  """Prints a result of `evaluate`."""
  first, *others = describe_result(result)
  console.print_result(first)
  print(*others, sep='\n', end='\n' * bool(others))


def _summarize(phase: Phase, metrics: Mapping[str, np.ndarray]) -> dict:
  name = primary_metric(metrics)
  result = {
    'transductive': is_transductive(phase.norm),
    **summarize(metrics),
    'median': float(np.median(metrics[name])),
  }
  if name == 'accuracy':
    expected = expected_at_chance(phase.ways * phase.queries, phase.ways)
    result['at_chance'] = share_at_chance(metrics[name], phase.ways)
    result['expected_at_chance'] = expected
  return result


def _measure_curve(e: Evaluation) -> tuple[dict | None, dict]:
  """Measures accuracy and loss after each inner step.

  The support set is evaluated by the query pass, like the query set.

  Returns:
    The means, and the metrics of each task.
  """
  if not (e.config.eval.curve_tasks and e.phase.num_steps):
    return None, {}
  learner = setup.phase_learner(e.config, e.phase)

  def measure(params, stats, episode):
    def observe(params, stats):
      return {
        f'curve_{name}_{key}': x
        for name, batch in episode._asdict().items()
        for key, x in learner.evaluate(params, stats, batch).items()
      }

    return learner.adapt_and_observe(params, stats, episode.support, observe)

  arrays = e.measure('curve', learner, measure, e.config.eval.curve_tasks)
  curve: dict[str, Any] = {'num_tasks': len(arrays['curve_query_loss'])}
  for name, x in arrays.items():
    _, batch, key = name.split('_')
    curve.setdefault(batch, {})[key] = x.mean(0, dtype=np.float64).tolist()
  values = arrays[f'curve_query_{primary_metric(curve["query"])}']
  intervals = [mean_interval(column)[1] for column in values.T]
  curve['query']['interval'] = intervals
  return curve, arrays
