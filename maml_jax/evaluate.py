"""How good is a learner? Its accuracy over many independent tasks."""

import json
import os
import pathlib
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from ml_collections import ConfigDict

import maml_jax
from maml_jax import checkpoint, experiment
from maml_jax.checkpoint import Checkpoint
from maml_jax.errors import UserError
from maml_jax.experiment import Machine, Phase
from maml_jax.learner import Learner
from maml_jax.metrics import devices, progress, score, show, summary
from maml_jax.parallel import mean_over_tasks
from maml_jax.tasks import Fixed, fixed_tasks
from maml_jax.types import EPISODE, SUPPORT, PyTree
from maml_jax.workdir import MAY_DIFFER, check_same, write_text

# Tasks per call, or a few more so that they divide over devices and chunks.
BATCH = 32
# What an evaluation need not have in common with the training.
IGNORED = (*MAY_DIFFER, 'outer', 'precision', 'seed', 'train', 'val')


def make_evaluator(
    learner: Learner, tasks: Fixed, machine: Machine, *, batch: int = BATCH
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

  def one_task(shared, task):
    (params, stats, shared), (key, given) = shared, task
    episode = tasks.recall(key, shared, *given)
    _, (_, metrics) = learner.loss(params, stats, episode)
    return (), metrics

  over_tasks = mean_over_tasks(one_task, machine.mesh, machine.chunk)
  run = jax.jit(lambda shared, chosen: over_tasks(shared, chosen)[1])
  unit = (machine.mesh.size if machine.mesh else 1) * (machine.chunk or 1)
  size, num_tasks = -(-batch // unit) * unit, len(tasks.keys)

  def evaluator(params, stats, advance=lambda n: None, stop=False):
    done = []
    for start in range(0, num_tasks, size):
      if stop:
        return None
      # The last batch is filled up with the first tasks, whose metrics are cut.
      rows = np.arange(start, start + size) % num_tasks
      chosen = tasks.keys[rows], tasks.given(rows)
      done.append(run((params, stats, tasks.shared), chosen))
      jax.block_until_ready(done[-2:-1])  # one runs while the next is prepared
      advance(min(size, num_tasks - start))
    joined = jax.tree.map(lambda *x: np.concatenate(x), *jax.device_get(done))
    return {name: x[:num_tasks] for name, x in joined.items()}

  return evaluator


def phase_evaluator(
    config: ConfigDict, phase: Phase, num_tasks: int, machine: Machine
) -> Callable[..., dict[str, np.ndarray] | None]:
  """`make_evaluator` for the first `num_tasks` fixed tasks of a phase.

  It takes the params and stats of another phase, too, see `fit`.
  """
  learner = experiment.phase_learner(config, phase)
  tasks = fixed_tasks(config, phase, num_tasks, machine)
  evaluator = make_evaluator(learner, tasks, machine)
  return lambda params, stats, *args: evaluator(
      *machine.put(fit(learner, params, stats)), *args
  )


def evaluate(
    config: ConfigDict,
    source: str | os.PathLike,
    workdir: str | os.PathLike | None = None,
) -> dict:
  """Measures a checkpoint on `config.eval.num_tasks` tasks, and says so.

  Args:
    config: `eval` says how; the rest must be that of the checkpoint, except for
      what training alone needs.
    source: a workdir, or one checkpoint.
    workdir: where results are kept; by default `source`.

  Returns:
    What WORKDIR/eval/NAME.json holds. NAME.npz has the metrics of each task.

  Raises:
    UserError: there is no sound checkpoint, or it is of another config.
  """
  experiment.prepare_jax(config)
  saved = checkpoint.load(source, config.eval.checkpoint)
  check_same(saved.config, config, saved.path, IGNORED)
  phase, machine = experiment.eval_phase(config), experiment.machine(config)
  num_tasks = config.eval.num_tasks
  with (
      experiment.product_precision(config),
      progress(num_tasks, 'task', 'evaluating') as bar,
  ):
    evaluator = phase_evaluator(config, phase, num_tasks, machine)
    metrics = evaluator(saved.params, saved.stats, bar.update)
  result = _summarize(config, phase, saved, metrics)
  path = _write(pathlib.Path(workdir or source), result, metrics)
  print(f'{describe(result)}\n{path}')
  return result


def fit(learner: Learner, params: PyTree, stats: PyTree):
  """Params and stats of a training, as the learner of another phase takes them.

  That learner may have another norm mode. If it has another number of ways, it
  resets the head in every task, and the head given is not used.

  Args:
    learner: of `experiment.phase_learner`.
    params: from a training.
    stats: likewise.

  Returns:
    params, stats.

  Raises:
    UserError: the learner needs what they lack.
  """

  def take(tree, path, fresh):
    for key in path:
      tree = tree.get(key.key, {})
    if isinstance(tree, dict):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      raise UserError(
          f'config.eval.norm needs {name}, which the checkpoint lacks: it was '
          'trained with another config.model.norm'
      )
    return tree if tree.shape == fresh.shape else fresh

  with_path = jax.tree_util.tree_map_with_path
  fresh_params, fresh_stats = jax.jit(learner.init)(jax.random.key(0))
  keys = (EPISODE, SUPPORT)
  own = {k: fresh_stats.pop(k) for k in keys if k in fresh_stats}
  return (
      with_path(partial(take, params), fresh_params),
      with_path(partial(take, stats), fresh_stats) | own,
  )


def is_transductive(norm: str | tuple) -> bool:
  """Whether an answer may depend on the other query images."""
  modes = [norm] if isinstance(norm, str) else [mode for _, mode in norm]
  return 'batch' in modes


def describe(result: dict) -> str:
  """One line for people, of what `evaluate` returns."""
  steps, tasks = result['num_steps'], result['num_tasks']
  if score(result) == 'loss':
    task = f'{result["shots"]} points, {result["queries"]} queries'
    kind, more = '', ''
  else:
    task = (
        f'{result["ways"]}-way {result["shots"]}-shot, '
        f'{result["queries"]} queries per class'
    )
    kind = ', transductive' if result['transductive'] else ', inductive'
    more = f', loss {result["loss"]:.3f}'
  name = score(result)
  return (
      f'{result["data"]} {result["split"]}, {task}, {steps} inner steps{kind}: '
      f'{name} {show(name, result[name], result["interval"])} '
      f'(95 % interval over {tasks} tasks), '
      f'median {show(name, result["median"])}{more}; '
      f'checkpoint of step {result["step"]}'
  )


def _summarize(config, phase: Phase, saved: Checkpoint, metrics) -> dict:
  result = {
      'data': config.data.name,
      **phase._asdict(),
      'transductive': is_transductive(phase.norm),
      'num_tasks': len(metrics['loss']),
      **summary(metrics),
      'median': float(np.median(metrics[score(metrics)])),
      'checkpoint': str(saved.path),
      'step': saved.step,
      'seed': saved.config.seed,
      'precision': config.precision,
      'version': maml_jax.__version__,
      'jax': jax.__version__,
      'devices': devices(),
      'config': saved.config.to_dict(),
  }
  return json.loads(json.dumps(result))  # as it is read back


def _write(workdir: pathlib.Path, result: dict, metrics) -> pathlib.Path:
  norm = result['norm'] if isinstance(result['norm'], str) else 'layers'
  name = '{split}_{ways}w{shots}s_q{queries}_k{num_steps}_{norm}_{num_tasks}'
  name = name.format(**result | {'norm': norm}) + f'_step{result["step"]}'
  path = workdir / 'eval' / f'{name}.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  np.savez_compressed(path.with_suffix('.npz'), **metrics)
  write_text(path, json.dumps(result, indent=2))
  return path
