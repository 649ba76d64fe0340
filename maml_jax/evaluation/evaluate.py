"""Evaluates a checkpoint on many independent tasks."""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from maml_jax import config as config_lib
from maml_jax import data
from maml_jax.evaluation import baselines, results
from maml_jax.evaluation.runner import learner_metrics, make_task_runner
from maml_jax.evaluation.statistics import (
  expected_at_chance,
  mean_interval,
  paired_difference,
  share_at_chance,
  summarize,
)
from maml_jax.experiment import checkpoint, setup
from maml_jax.experiment.formatting import (
  describe_data,
  describe_protocol,
  format_metric,
  format_percent,
  norm_label,
)
from maml_jax.experiment.metrics import is_transductive, primary_metric
from maml_jax.experiment.run_dir import (
  RESUME_IGNORED_FIELDS,
  require_same_config,
)
from maml_jax.experiment.setup import Phase
from maml_jax.experiment.task_source import (
  EvalTasks,
  eval_task_indices,
  eval_tasks,
  task_classes,
)
from maml_jax.experiment.transfer import transfer_params
from maml_jax.learner import Learner, accuracy
from maml_jax.utils import console, distributed
from maml_jax.utils.errors import UserError
from maml_jax.utils.files import expand_path
from maml_jax.utils.progress import progress_bar

__all__ = [
  'EVAL_IGNORED_FIELDS',
  'Evaluation',
  'describe_result',
  'evaluate',
  'print_summary',
]

# Training images whose mean features center those of a baseline.
MEAN_IMAGES = 2000
MEAN_BATCH_SIZE = 50
# Fields in which an evaluation may differ from the training.
EVAL_IGNORED_FIELDS = (
  *RESUME_IGNORED_FIELDS,
  'data.augment_query',
  'data.augment_support',
  'outer',
  'precision',
  'pretrain',
  'seed',
  'train',
  'val',
)


class Evaluation:
  """Measures one checkpoint in several ways on the fixed tasks of a phase.

  Args:
    config: its `eval` section configures the evaluation; the rest must be the
      config of the checkpoint.
    source: a workdir or one checkpoint.
    workdir: where results are saved.
    phase: provides the tasks, the norm mode and the number of inner steps.
    name: distinguishes the result from others of the same phase.

  Attributes:
    config: see above.
    phase: see above.
    num_tasks: number of tasks.
    saved: the checkpoint.
    workdir: see above.
    name: of the result files.

  Raises:
    UserError: the checkpoint is missing, damaged, or has another config, or the
      workdir contains the same result of another checkpoint.
  """

  def __init__(self, config, source, workdir, phase: Phase, name: str):
    self.config, self.phase = config, phase
    self.saved = checkpoint.load(source, config.eval.checkpoint)
    advice = 'use the config of the checkpoint'
    if config.data.name != self.saved.config.data.name:
      advice += f'; --eval.data={config.data.name} evaluates on that data set'
    require_same_config(
      self.saved.config, config, self.saved.path, EVAL_IGNORED_FIELDS, advice
    )
    self.num_tasks = setup.num_eval_tasks(config)
    self.workdir = pathlib.Path(workdir)
    shape = '{split}_{ways}w{shots}s'.format(**phase._asdict())
    self.name = (
      f'{_data_prefix(phase)}{shape}_{name}_{self.num_tasks}_step'
      f'{self.saved.step}'
    )
    distributed.on_main_process(self._require_own_result)
    self._sharding = setup.eval_sharding(config)

  def measure(
    self,
    what: str,
    learner: Learner,
    measure: Callable,
    num_tasks: int | None = None,
  ) -> dict[str, np.ndarray]:
    """Measures each task, with a progress bar; resumes if interrupted.

    Args:
      what: one word for the progress bar and the name of the partial file.
      learner: the learner that the parameters are transferred to.
      measure: see `make_task_runner`.
      num_tasks: number of tasks; default all.

    Returns:
      The measurements, [num_tasks, ...] each.
    """
    num_tasks = min(num_tasks or self.num_tasks, self.num_tasks)
    tasks = self._tasks._replace(keys=self._tasks.keys[:num_tasks])
    run = make_task_runner(measure, tasks, self._sharding)
    params, stats = self._sharding.replicate(
      transfer_params(learner, self.saved.params, self.saved.stats)
    )
    partial_file = self.workdir / 'eval' / f'{self.name}_{what}.part'
    identity = {
      'fingerprint': checkpoint.fingerprint(self.saved),
      'num_tasks': num_tasks,
      'phase': self.phase._asdict(),
      'precision': self.config.precision,
      **results.provenance(),
    }
    with (
      setup.matmul_precision(self.config),
      progress_bar(num_tasks, 'task', f'evaluating {what}') as bar,
    ):
      return results.collect_metrics(
        lambda start: run(params, stats, start),
        partial_file,
        identity,
        bar.update,
      )

  @functools.cached_property
  def _tasks(self) -> EvalTasks:
    return eval_tasks(self.config, self.phase, self.num_tasks, self._sharding)

  def metadata(self) -> dict:
    """Returns what every result states about its origin."""
    return {
      'name': self.name,
      **self.phase._asdict(),
      'num_tasks': self.num_tasks,
      'checkpoint': str(self.saved.path),
      'fingerprint': checkpoint.fingerprint(self.saved),
      'step': self.saved.step,
      'seed': self.saved.config.seed,
      'precision': self.config.precision,
      **results.provenance(),
      'config': self.saved.config.to_dict(),
    }

  @property
  def path(self) -> pathlib.Path:
    """The JSON file of the result; an .npz file next to it has all tasks."""
    return results.result_path(self.workdir, self.name)

  def save(self, result: dict, arrays: dict, show: Callable) -> dict:
    """Prints a result with `show`, saves it, and returns it as saved."""
    result = json.loads(json.dumps(self.metadata() | result))
    show(result)  # first, as the disk may be full
    results.write_result(self.workdir, self.name, result, arrays)
    print(self.path)
    return result

  def _require_own_result(self) -> None:
    """Raises UserError if another checkpoint has a result of the same name."""
    saved, own = results.read_result(self.path), self.metadata()
    if all(
      saved.get(key, own[key]) != own[key]
      for key in ('checkpoint', 'fingerprint')
    ):
      raise UserError(
        f'{self.path} is the result of another checkpoint, '
        f'{saved["checkpoint"]}: move it away, or evaluate with '
        f'--checkpoint={self.saved.path} and another --workdir'
      )

  def find_saved(self) -> dict | None:
    """Returns the saved result of the same measurement and version, if any."""
    metadata = json.loads(json.dumps(self.metadata()))
    del metadata['checkpoint'], metadata['commit']  # they may differ
    saved = results.read_result(self.path)
    return saved if metadata.items() <= saved.items() else None


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
    rows, baseline_metrics = _measure_baselines(e, metrics['accuracy'])
    result['baselines'] = rows
  return e.save(result, metrics | curve | baseline_metrics, print_summary)


def describe_result(result: dict) -> list[str]:
  """Returns lines that describe a result of `evaluate`."""
  name = primary_metric(result)
  protocol = describe_protocol(result['norm'], result['queries'])
  task = f'{result["ways"]}-way {result["shots"]}-shot, {protocol}'
  if name == 'loss':
    protocol = f'{result["queries"]} queries'
    task = f'{result["shots"]} points, {protocol}'
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


def _data_prefix(phase: Phase) -> str:
  """Returns the first part of the names of results on another data set."""
  if phase.data_root is None:
    return ''
  if not data.spec(phase.data).user_provided:
    return f'{phase.data}_'
  path = os.fsencode(expand_path(phase.data_root).resolve())
  return f'{phase.data}-{hashlib.sha256(path).hexdigest()[:8]}_'


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


def _mean_train_features(
  e: Evaluation, features: Callable, learner: Learner
) -> np.ndarray | None:
  """Returns the mean features of training images, [1, D], for SimpleShot.

  The images are normalized by running averages if the norm mode has them, and
  otherwise by the moments of a batch. Returns None without training images.
  """
  config = e.config
  try:
    dataset = setup.load_split(config, setup.train_phase(config))
  except UserError as error:
    console.print_warning(
      f'no baseline simple_shot, which needs the mean: {error}'
    )
    return None
  per_class = -(-MEAN_IMAGES // len(dataset.size))
  rows = np.concatenate(
    [
      row[: min(size, per_class)]
      for row, size in zip(dataset.index, dataset.size, strict=True)
    ]
  )
  params, stats = transfer_params(learner, e.saved.params, e.saved.stats)
  modes = config_lib.norm_modes('norm', e.phase.norm)
  train = set(modes) != {'global'}

  @jax.jit
  def mean_features(images):
    inputs = setup.scale_images(config, images)
    return features(params, stats, inputs, train=train)[0].mean(0)

  # Batches of one size, with images of many classes each.
  batches = np.random.RandomState(0).permutation(rows)
  size = min(MEAN_BATCH_SIZE, len(rows))
  batches = batches[: len(rows) // size * size].reshape(-1, size)
  with setup.matmul_precision(config):
    means = [np.asarray(mean_features(dataset.images[b])) for b in batches]
  return np.mean(means, 0)[None]


def _measure_baselines(
  e: Evaluation, maml_accuracy: np.ndarray
) -> tuple[list[dict], dict]:
  """Measures the baselines of `baselines` on the same tasks."""
  # Its inner loop only collects the statistics that the norm mode needs.
  not_adapted = setup.phase_learner(e.config, e.phase, frozen=('*',))
  features = setup.phase_model(e.config, e.phase).features
  assert features is not None
  center = _mean_train_features(e, features, not_adapted)

  def measure(params, stats, episode):
    params, stats, _ = not_adapted.adapt(params, stats, episode.support)
    support, query = (
      features(params, stats, batch.inputs, train=False)[0] for batch in episode
    )
    logits = not_adapted.predict(params, stats, episode.query.inputs)
    outputs = {'no_adaptation': logits}
    targets = episode.support.targets
    for name, (fn, _) in baselines.FEATURE_BASELINES.items():
      outputs[name] = fn(support, targets, query, e.phase.ways)
    if center is not None:
      outputs['simple_shot'] = baselines.simple_shot(
        support - center, targets, query - center, e.phase.ways
      )
    return {
      f'baseline_{name}': accuracy(logits, episode.query.targets)
      for name, logits in outputs.items()
    }

  arrays = e.measure('baselines', not_adapted, measure)
  return _compare_baselines(arrays, maml_accuracy), arrays


def _compare_baselines(
  arrays: Mapping[str, np.ndarray], maml_accuracy: np.ndarray
) -> list[dict]:
  """Returns accuracy and paired difference from MAML of each baseline."""
  descriptions = {
    name: text for name, (_, text) in baselines.FEATURE_BASELINES.items()
  }
  descriptions['simple_shot'] = (
    'nearest class mean of centered, normalized features (SimpleShot)'
  )
  descriptions['no_adaptation'] = 'the meta-learned initialization, not adapted'
  rows = []
  for key, values in arrays.items():
    name = key.removeprefix('baseline_')
    mean, interval = mean_interval(values)
    difference, half_width = paired_difference(values, maml_accuracy)
    rows.append(
      {
        'name': name,
        'about': descriptions[name],
        'accuracy': mean,
        'interval': interval,
        'difference': difference,
        'difference_interval': half_width,
      }
    )
  return rows
