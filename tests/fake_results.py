"""Writes workdirs with random metrics and evaluation results.

They have the format of real ones, but nothing is trained.
"""

import json
import math

import numpy as np

from maml_jax import config as config_lib
from maml_jax.evaluation.statistics import (
  expected_at_chance,
  mean_interval,
  summarize,
)
from maml_jax.experiment import setup
from maml_jax.experiment.task_source import eval_task_indices

# name -> (description, mean difference from MAML)
BASELINES = {
  'no_adaptation': ('the meta-learned initialization, not adapted', -0.2),
  'nearest_centroid': ('nearest class mean of the features', -0.04),
  'linear_head': ('logistic regression on frozen features', 0.01),
}


def write_metrics(workdir, seed=0, num_epochs=5, accuracy=True) -> None:
  """Writes training records every 10 steps and validation records every 50."""
  rng = np.random.default_rng(seed)
  records = []
  for step in range(10, 50 * num_epochs + 1, 10):
    level = 0.3 + 0.5 * (1 - math.exp(-step / 100))
    for split in ('train', 'val')[: 1 + (step % 50 == 0)]:
      record = {'step': step, 'split': split}
      record['loss'] = 2 * (1 - level) + rng.normal(0, 0.02)
      if accuracy:
        record['accuracy'] = level + rng.normal(0, 0.02)
      if split == 'val':
        record['interval'] = 0.02
      records.append(record)
  lines = ''.join(json.dumps(record) + '\n' for record in records)
  (workdir / 'metrics.jsonl').write_text(lines)


def write_tasks(
  workdir, config, dataset, num_tasks=40, seed=0, name='tasks', **fields
) -> None:
  """Writes an evaluation of kind 'tasks' with all optional parts.

  Args:
    workdir: a directory.
    config: its `eval` section configures the tasks.
    dataset: the evaluated split.
    num_tasks: T.
    seed: the seed of the run, and of the random results.
    name: the name of the files in eval/.
    **fields: override fields of the JSON file.
  """
  rng = np.random.default_rng(seed)
  phase = setup.eval_phase(config)
  ways, queries = phase.ways, phase.queries
  positions, _ = eval_task_indices(dataset, phase, num_tasks)
  classes = np.searchsorted(dataset.size.cumsum(), positions[:, :, 0], 'right')
  error_rate = 0.1 + 0.5 * (classes % 4 == 0)  # classes 0 and 4 are hard
  error_rate = error_rate + rng.uniform(0, 0.25, classes.shape)
  label = np.tile(np.repeat(np.arange(ways), queries), (num_tasks, 1))
  is_wrong = rng.uniform(size=label.shape) < error_rate.repeat(queries, 1)
  other = (label + rng.integers(1, ways, label.shape)) % ways
  predicted = np.where(is_wrong, other, label)
  accuracy = (predicted == label).mean(1)
  arrays = {
    'accuracy': accuracy,
    'loss': 2 * (1.1 - accuracy) + rng.uniform(0, 0.1, num_tasks),
    'support_loss': rng.uniform(0, 0.1, num_tasks),
    'predicted': predicted.astype(np.uint16),
    'classes': classes.astype(np.int32),
  }
  curve, curve_arrays = _curve(accuracy, phase.num_steps, ways, rng)
  baselines, baseline_arrays = _baselines(accuracy, rng)
  result = (
    result_metadata(config, num_tasks, seed)
    | summarize({key: arrays[key] for key in ('accuracy', 'loss')})
    | {
      'kind': 'tasks',
      'median': float(np.median(accuracy)),
      'at_chance': float((accuracy <= 1 / ways).mean()),
      'expected_at_chance': expected_at_chance(ways * queries, ways),
      'curve': curve,
      'baselines': baselines,
    }
  )
  arrays |= curve_arrays | baseline_arrays
  write_result(workdir, name, result | fields, arrays)


def write_grid(workdir, config, num_tasks=40, seed=0, name='grid') -> None:
  """Writes an evaluation of kind 'grid'."""
  rng = np.random.default_rng(seed)
  base = {'norm': 'batch', 'queries': 15, 'num_steps': 5}
  tasks = rng.normal(0, 0.1, num_tasks)
  cells, rows = [], []
  for i, norm in enumerate(('batch', 'cumulative', 'support')):
    for queries in (1, 5, 15):
      for num_steps in (0, 1, 5, 10):
        level = 0.75 - 0.5 * math.exp(-num_steps) - 0.05 * i
        level -= 0.1 / queries * (i == 0)
        accuracy = level + tasks + rng.normal(0, 0.02, num_tasks)
        rows.append(np.clip(accuracy, 0, 1))
        cells.append(
          {
            'norm': norm,
            'transductive': norm == 'batch',
            'queries': queries,
            'num_steps': num_steps,
          }
        )
  (base_index,) = (
    i for i, cell in enumerate(cells) if base.items() <= cell.items()
  )
  for cell, accuracy in zip(cells, rows, strict=True):
    mean, interval = mean_interval(accuracy)
    difference, half_width = mean_interval(accuracy - rows[base_index])
    cell |= {
      'accuracy': mean,
      'interval': interval,
      'loss': 1 - mean,
      'median': float(np.median(accuracy)),
      'at_chance': 0.01,
      'difference': difference,
      'difference_interval': half_width,
    }
  result = result_metadata(config, num_tasks, seed)
  del result['transductive']
  result |= {'kind': 'grid', 'base': base, 'cells': cells}
  write_result(
    workdir,
    name,
    result,
    {'accuracy': np.array(rows), 'loss': 1 - np.array(rows)},
  )


def write_regression(workdir, config, num_tasks=40) -> None:
  """Writes an evaluation of a regression, which only has losses."""
  loss = np.random.default_rng(0).exponential(0.3, num_tasks)
  result = result_metadata(config, num_tasks, 0) | summarize({'loss': loss})
  result |= {
    'kind': 'tasks',
    'median': float(np.median(loss)),
    'curve': None,
    'baselines': None,
  }
  write_result(workdir, 'tasks', result, {'loss': loss})


def write_run(workdir, config, dataset, num_tasks=40, seed=0) -> None:
  """Writes a workdir with config, metrics, a grid and an evaluation."""
  workdir.mkdir(exist_ok=True)
  config = config.copy_and_resolve_references()
  config.seed = seed
  (workdir / 'config.json').write_text(config_lib.to_json(config))
  write_metrics(workdir, seed)
  write_grid(workdir, config, num_tasks, seed)
  write_tasks(workdir, config, dataset, num_tasks, seed)


def result_metadata(config, num_tasks, seed) -> dict:
  """Returns the fields that all results have in common."""
  phase = setup.eval_phase(config)._asdict()
  return {
    'data': config.data.name,
    **phase,
    'transductive': phase['norm'] == 'batch',
    'num_tasks': num_tasks,
    'checkpoint': 'runs/x/checkpoints/best/200',
    'step': 200,
    'seed': seed,
    'precision': 'float32',
    'version': '0.1.0',
    'commit': '0123456789+',
    'jax': '0.12.0',
    'devices': '2 x cpu',
    'config': config.to_dict() | {'seed': seed},
  }


def write_result(workdir, name, result, arrays) -> None:
  """Writes WORKDIR/eval/NAME.json and NAME.npz."""
  folder = workdir / 'eval'
  folder.mkdir(parents=True, exist_ok=True)
  (folder / f'{name}.json').write_text(json.dumps(result))
  np.savez_compressed(folder / f'{name}.npz', **arrays)


def _curve(accuracy, num_steps, ways, rng):
  """Returns an adaptation curve, and its arrays per task."""
  rise = 1 - np.exp(-np.arange(num_steps + 1))
  query = 1 / ways + (accuracy[:, None] - 1 / ways) * rise / max(rise[-1], 1e-9)
  query = np.clip(query + rng.normal(0, 0.02, query.shape), 0, 1)
  support = np.clip(query + 0.25 * rise, 0, 1)
  arrays = {
    'curve_query_accuracy': query,
    'curve_query_loss': 2 * (1.1 - query),
    'curve_support_accuracy': support,
    'curve_support_loss': 2 * (1.1 - support),
  }
  curve = {
    part: {
      name: arrays[f'curve_{part}_{name}'].mean(0).tolist()
      for name in ('loss', 'accuracy')
    }
    for part in ('support', 'query')
  }
  curve['query']['interval'] = [mean_interval(x)[1] for x in query.T]
  return {'num_tasks': len(accuracy)} | curve, arrays


def _baselines(accuracy, rng):
  """Returns the results of baselines, and their accuracies per task."""
  rows, arrays = [], {}
  for name, (about, shift) in BASELINES.items():
    values = accuracy + shift + rng.normal(0, 0.05, len(accuracy))
    values = np.clip(values, 0, 1)
    mean, interval = mean_interval(values)
    difference, half_width = mean_interval(values - accuracy)
    rows.append(
      {
        'name': name,
        'about': about,
        'accuracy': mean,
        'interval': interval,
        'difference': difference,
        'difference_interval': half_width,
      }
    )
    arrays[f'baseline_{name}'] = values
  return rows, arrays
