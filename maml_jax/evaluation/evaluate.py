"""How good is a learner? Its accuracy over many independent tasks."""

import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import jax
import numpy as np
from ml_collections import ConfigDict

from maml_jax.evaluation import baselines, results
from maml_jax.experiment import checkpoint, setup
from maml_jax.utils import console, distributed
from maml_jax.utils.errors import UserError
from maml_jax.sharding import TaskSharding
from maml_jax.experiment.setup import Phase
from maml_jax.evaluation.statistics import expected_at_chance, mean_interval, paired_difference, share_at_chance
from maml_jax.learner import Learner, accuracy
from maml_jax.experiment.metrics import is_transductive, primary_metric
from maml_jax.experiment.formatting import describe_protocol, format_metric, format_percent
from maml_jax.utils.progress import progress_bar
from maml_jax.evaluation.statistics import summarize
from maml_jax.sharding import constrain_replicated, mean_over_tasks
from maml_jax.experiment.task_source import EvalTasks, eval_task_indices, eval_tasks
from maml_jax.types import EPISODE, PyTree, SUPPORT
from maml_jax.experiment.run_dir import RESUME_IGNORED_FIELDS, require_same_config

# Tasks per call, or a few more so that they divide over devices and chunks.
BATCH_SIZE = 32
# What an evaluation need not have in common with the training.
EVAL_IGNORED_FIELDS = (
    *RESUME_IGNORED_FIELDS,
    'data.augment_query',
    'data.augment_support',
    'outer',
    'precision',
    'seed',
    'train',
    'val',
)


def make_task_runner(
    measure: Callable,
    tasks: EvalTasks,
    machine: TaskSharding,
    *,
    batch: int = BATCH_SIZE,
) -> Callable[..., Iterator[dict[str, np.ndarray]]]:
  """Makes a function that measures something on each of a list of tasks.

  Args:
    measure: `measure(params, stats, episode) -> dict of arrays`, under jit.
    tasks: from `fixed_tasks`.
    machine: the devices.
    batch: tasks per jitted call; the results do not depend on it.

  Returns:
    `run(params, stats, start=0)` yields what was measured of the tasks from
    `start` on, some tasks at a time, each [n, ...].
  """

  def one_task(shared, task):
    (params, stats, shared), (key, given) = shared, task
    key = jax.random.wrap_key_data(key)
    return (), measure(params, stats, tasks.recall(key, shared, *given))

  over_tasks = mean_over_tasks(one_task, machine.mesh, machine.chunk)

  @jax.jit
  def jitted(shared, chosen):
    measured = over_tasks(shared, chosen)[1]
    return constrain_replicated(measured, machine.mesh) if machine.mesh else measured

  unit = (machine.mesh.size if machine.mesh else 1) * (machine.chunk or 1)
  size, num_tasks = -(-batch // unit) * unit, len(tasks.keys)
  keys = np.asarray(jax.random.key_data(tasks.keys))

  def fetch(measured, count):
    return {name: x[:count] for name, x in jax.device_get(measured).items()}

  def run(params, stats, start=0):
    pending = None
    for first in range(start, num_tasks, size):
      # The last batch is filled up with the first tasks, whose metrics are cut.
      rows = np.arange(first, first + size) % num_tasks
      rows = rows[machine.rows(size)]
      chosen = keys[rows], tasks.given(rows)
      chosen = machine.spread(chosen, axis=0)
      measured = jitted((params, stats, tasks.shared), chosen)
      if pending:
        yield fetch(*pending)  # while the next are measured
      pending = measured, min(size, num_tasks - first)
    if pending:
      yield fetch(*pending)

  return run


def make_evaluator(
    learner: Learner, tasks: EvalTasks, machine: TaskSharding, *, batch: int = BATCH_SIZE
) -> Callable[..., dict[str, np.ndarray] | None]:
  """Makes a function that measures a learner on a list of tasks.

  Args:
    learner: adapts on the support set and is judged on the query set.
    tasks: from `fixed_tasks`.
    machine: the devices.
    batch: tasks per jitted call; the results do not depend on it.

  Returns:
    `evaluator(params, stats, advance, stop)` -> metrics by name, [T] each.
    `advance(n)` is called after n more tasks; once `stop` is true, the
    evaluator returns None.
  """
  run = make_task_runner(_metrics_of(learner), tasks, machine, batch=batch)

  def evaluator(params, stats, advance=lambda n: None, stop=False):
    done = []
    for metrics in run(params, stats):
      done.append(metrics)
      advance(len(metrics['loss']))
      if stop:
        return None
    return results.concatenate(done)

  return evaluator


def phase_evaluator(
    config: ConfigDict, phase: Phase, num_tasks: int, machine: TaskSharding
) -> Callable[..., dict[str, np.ndarray] | None]:
  """`make_evaluator` for the first `num_tasks` fixed tasks of a phase.

  It takes the params and stats of another phase, too, see `fit`.
  """
  learner = setup.phase_learner(config, phase)
  tasks = eval_tasks(config, phase, num_tasks, machine)
  evaluator = make_evaluator(learner, tasks, machine)
  return lambda params, stats, *args: evaluator(
      *machine.put(transfer_params(learner, params, stats)), *args
  )


class Evaluation:
  """Measures one checkpoint in several ways on the fixed tasks of a phase.

  Attributes:
    config: `eval` says how; the rest is that of the checkpoint.
    phase: whose tasks; its norm and steps are those of `learner` by default.
    num_tasks: how many of them.
    saved: the checkpoint.
    workdir: where results are kept.
    name: of the files of results.
  """

  def __init__(self, config, source, workdir, phase: Phase, name: str):
    """Reads the checkpoint; see `evaluate`."""
    setup.configure_jax(config)
    self.config, self.phase = config, phase
    self.saved = checkpoint.load(source, config.eval.checkpoint)
    require_same_config(self.saved.config, config, self.saved.path, EVAL_IGNORED_FIELDS)
    self.num_tasks = setup.num_eval_tasks(config)
    self.workdir = pathlib.Path(workdir)
    shape = '{split}_{ways}w{shots}s'.format(**phase._asdict())
    self.name = f'{shape}_{name}_{self.num_tasks}_step{self.saved.step}'
    self._machine = setup.eval_sharding(config)

  def measure(
      self,
      what: str,
      learner: Learner,
      measure: Callable,
      num_tasks: int | None = None,
  ) -> dict[str, np.ndarray]:
    """Measures on each task, goes on where it was interrupted, shows a bar.

    Args:
      what: a word for the bar and for the file of what is half done.
      learner: what the parameters are fitted to.
      measure: see `make_runner`.
      num_tasks: how many of the tasks; by default all.

    Returns:
      What was measured, [num_tasks, ...] each.
    """
    num_tasks = min(num_tasks or self.num_tasks, self.num_tasks)
    tasks = eval_tasks(self.config, self.phase, num_tasks, self._machine)
    run = make_task_runner(measure, tasks, self._machine)
    fitted = transfer_params(learner, self.saved.params, self.saved.stats)
    params, stats = self._machine.put(fitted)
    part = self.workdir / 'eval' / f'{self.name}_{what}.part'
    identity = {
        'fingerprint': checkpoint.fingerprint(self.saved),
        'num_tasks': num_tasks,
        'phase': self.phase._asdict(),
        'precision': self.config.precision,
        **results.provenance(),
    }
    with (
        setup.matmul_precision(self.config),
        progress_bar(num_tasks, 'task', f'measuring {what}') as bar,
    ):
      return results.collect_metrics(
          lambda start: run(params, stats, start), part, identity, bar.update
      )

  def facts(self) -> dict:
    """What every result says of itself."""
    return {
        'name': self.name,
        'data': self.config.data.name,
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
    """Where the result is kept; the metrics of each task in .npz beside it."""
    return results.result_path(self.workdir, self.name)

  def write(self, result: dict, arrays: dict, say: Callable) -> dict:
    """Says and keeps a result; returns it as it is read back."""
    result = json.loads(json.dumps(self.facts() | result))
    say(result)  # first: there may be no room to keep it
    results.write_result(self.workdir, self.name, result, arrays)
    print(self.path)
    return result

  def kept(self) -> dict | None:
    """The result that is there, if it is of the same by the same version."""
    facts = json.loads(json.dumps(self.facts()))
    del facts['checkpoint'], facts['commit']  # it tells its own
    kept = results.read_result(self.path)
    return kept if facts.items() <= kept.items() else None


def evaluate(
    config: ConfigDict,
    source: str | os.PathLike,
    workdir: str | os.PathLike | None = None,
    *,
    again: bool = True,
) -> dict:
  """Measures a checkpoint on many tasks, and says so.

  Args:
    config: `eval` says how; the rest must be that of the checkpoint, except for
      what training alone needs.
    source: a workdir, or one checkpoint.
    workdir: where results are kept; by default `source`.
    again: measure even if there is a result of the same by the same version.

  Returns:
    What WORKDIR/eval/NAME.json holds. NAME.npz has the metrics of each task.

  Raises:
    UserError: there is no sound checkpoint, or it is of another config.
  """
  phase = setup.eval_phase(config)
  name = f'q{phase.queries}_k{phase.num_steps}_{norm_label(phase.norm)}'
  e = Evaluation(config, source, workdir or source, phase, name)
  if not again and (result := distributed.on_main_process(e.kept)):
    return result
  answers = {'accuracy': accuracy, 'predicted': lambda x, _: x.argmax(-1)}
  learner = setup.phase_learner(config, phase, answers)
  metrics = e.measure('tasks', learner, _metrics_of(learner))
  result = {'kind': 'tasks', **_summarize(phase, metrics)}
  if 'predicted' in metrics:
    metrics['predicted'] = metrics['predicted'].astype(np.uint16)
    metrics['classes'] = task_classes(config, phase, e.num_tasks)
  result['curve'], curve = _curve(e)
  result['baselines'], others = None, {}
  if config.eval.baselines and 'accuracy' in metrics:
    result['baselines'], others = _baselines(e, metrics['accuracy'])
  return e.write(result, metrics | curve | others, print_summary)


def transfer_params(learner: Learner, params: PyTree, stats: PyTree):
  """Params and stats of a checkpoint, as a learner takes them.

  That learner may have another norm mode. If it has another number of ways, it
  begins with a head of its own.

  Args:
    learner: of `experiment.phase_learner`.
    params: from a training.
    stats: likewise.

  Returns:
    params, stats.

  Raises:
    UserError: the learner needs what they lack.
  """

  def take(tree, path, wanted):
    for key in path:
      tree = tree.get(key.key, {})
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if isinstance(tree, dict):
      raise UserError(
          f'norm needs {name}, which the checkpoint lacks: it was trained with '
          'another config.model.norm, or is of another model'
      )
    if tree.shape == wanted.shape:
      return tree
    if not name.startswith('classifier/'):
      raise UserError(
          f'{name} is {tree.shape} in the checkpoint, where {wanted.shape} is '
          'needed: it is of another model or data set'
      )
    return fresh_head[path[-1].key]

  def own(key):  # what is not asked for of `init` is not compiled
    params, stats = learner.init(key)
    return params.get('classifier', {}), {
        k: stats[k] for k in (EPISODE, SUPPORT) if k in stats
    }

  key = jax.random.key(0)
  fresh_head, fresh_stats = jax.jit(own)(key)
  wanted_params, wanted_stats = jax.eval_shape(learner.init, key)
  kept = {k: x for k, x in wanted_stats.items() if k not in fresh_stats}
  with_path = jax.tree_util.tree_map_with_path
  return (
      with_path(partial(take, params), wanted_params),
      with_path(partial(take, stats), kept) | fresh_stats,
  )


def describe_result(result: dict) -> list[str]:
  """Lines for people, of what `evaluate` returns."""
  name = primary_metric(result)
  means = describe_protocol(result['norm'], result['queries'])
  task = f'{result["ways"]}-way {result["shots"]}-shot, {means}'
  if name == 'loss':
    means = f'{result["queries"]} queries'
    task = f'{result["shots"]} points, {means}'
  more = f', median {format_metric(name, result["median"])}'
  if name == 'accuracy':
    more += f', {format_percent(result["at_chance"])} of tasks at chance'
    more += f', loss {result["loss"]:.3f}'
  lines = [
      f'{result["data"]} {result["split"]}, {task}, {result["num_steps"]} '
      f'inner steps: {name} {format_metric(name, result[name], result["interval"])} '
      f'(95 % interval over {result["num_tasks"]} tasks){more}; '
      f'checkpoint of step {result["step"]}'
  ]
  lines += [
      f'  {row["name"]}, {means}: {format_percent(row["accuracy"], row["interval"])}, '
      f'{format_percent(row["difference"], row["difference_interval"])} from MAML'
      for row in result['baselines'] or ()
  ]
  if result['curve']:
    values = (format_metric(name, x) for x in result['curve']['query'][name])
    lines.append(
        f'  after 0, 1, ... inner steps, {means}, first '
        f'{result["curve"]["num_tasks"]} tasks: {" ".join(values)}'
    )
  return lines


def print_summary(result: dict) -> None:
  """Prints what `evaluate` returns."""
  first, *others = describe_result(result)
  console.print_result(first)
  print(*others, sep='\n', end='\n' * bool(others))


def norm_label(norm: str | tuple) -> str:
  """A norm mode, or 'layers' where layers have modes of their own."""
  return norm if isinstance(norm, str) else 'layers'


def task_classes(
    config: ConfigDict, phase: Phase, num_tasks: int
) -> np.ndarray:
  """The classes of fixed tasks: rows of `Dataset.index`, [T, W] int32."""
  dataset = setup.load_split(config, phase)
  positions, _ = eval_task_indices(dataset, phase, num_tasks)
  # Images lie in order of class.
  ends = dataset.size.cumsum()
  return np.searchsorted(ends, positions[..., 0], 'right').astype(np.int32)


def _metrics_of(learner: Learner) -> Callable:
  """`measure` of `make_runner`: what the learner reports of a task."""
  return lambda *args: learner.loss(*args)[1][1]


def _summarize(phase: Phase, metrics: Mapping[str, np.ndarray]) -> dict:
  name = primary_metric(metrics)
  result = {
      'transductive': is_transductive(phase.norm),
      **summarize(metrics),
      'median': float(np.median(metrics[name])),
  }
  if name == 'accuracy':
    luck = expected_at_chance(phase.ways * phase.queries, phase.ways)
    result['at_chance'] = share_at_chance(metrics[name], phase.ways)
    result['at_chance_by_luck'] = luck
  return result


def _curve(e: Evaluation) -> tuple[dict | None, dict]:
  """Accuracy and loss after each inner step: means, and those of each task.

  The support set is judged as the query set is, by the query pass.
  """
  if not (e.config.eval.curve_tasks and e.phase.num_steps):
    return None, {}
  learner = setup.phase_learner(e.config, e.phase)

  def measure(params, stats, episode):
    def observe(params, stats):
      return {
          f'curve_{name}_{key}': x
          for name, batch in episode._asdict().items()
          for key, x in learner.judge(params, stats, batch).items()
      }

    return learner.trace(params, stats, episode.support, observe)

  arrays = e.measure('curve', learner, measure, e.config.eval.curve_tasks)
  curve = {'num_tasks': len(arrays['curve_query_loss'])}
  for name, x in arrays.items():
    _, batch, key = name.split('_')
    curve.setdefault(batch, {})[key] = x.mean(0, dtype=np.float64).tolist()
  counts = arrays[f'curve_query_{primary_metric(curve["query"])}']
  intervals = [mean_interval(column)[1] for column in counts.T]
  curve['query']['interval'] = intervals
  return curve, arrays


def _baselines(e: Evaluation, maml: np.ndarray) -> tuple[list[dict], dict]:
  """Simpler ways to use the same encoder, on the same tasks: `baselines`."""
  # Its inner loop gathers the statistics that a norm mode needs, no more.
  still = setup.phase_learner(
      e.config, e.phase, encoder_lr=0.0, classifier_lr=0.0
  )
  features_of = setup.phase_model(e.config, e.phase, head=False).apply

  def measure(params, stats, episode):
    params, stats, _ = still.adapt(params, stats, episode.support)
    encoder = {'encoder': params['encoder']}
    support, query = (
        features_of(encoder, stats, batch.image, train=False)[0]
        for batch in episode
    )
    logits = still.predict(params, stats, episode.query.image)
    answers = {'no_adaptation': logits}
    for name, (fn, _) in baselines.FEATURE_BASELINES.items():
      answers[name] = fn(support, episode.support.label, query, e.phase.ways)
    return {
        f'baseline_{name}': accuracy(logits, episode.query.label)
        for name, logits in answers.items()
    }

  arrays = e.measure('baselines', still, measure)
  about = {name: text for name, (_, text) in baselines.FEATURE_BASELINES.items()}
  about['no_adaptation'] = 'the meta-initialisation as it is'
  rows = []
  for key, values in arrays.items():
    name = key.removeprefix('baseline_')
    mean, interval = mean_interval(values)
    difference, half = paired_difference(values, maml)
    rows.append({
        'name': name,
        'about': about[name],
        'accuracy': mean,
        'interval': interval,
        'difference': difference,
        'difference_interval': half,
    })
  return rows, arrays
