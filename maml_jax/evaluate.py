"""How good is a learner? Accuracy over many independent tasks."""

import functools
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import maml_jax
from maml_jax import checkpoint, data, experiment
from maml_jax.checkpoint import Checkpoint
from maml_jax.data.episodes import distinct_tasks, gather_episode
from maml_jax.errors import UserError
from maml_jax.experiment import Machine, Phase
from maml_jax.metrics import mean_interval, percent, progress
from maml_jax.parallel import mean_over_tasks
from maml_jax.types import EPISODE, SUPPORT, Dataset
from maml_jax.workdir import MAY_DIFFER, check_same, write_text

# Tasks per jitted call, at least; the same results for any number.
BATCH = 32
# What may differ between the config of a checkpoint and that of an evaluation.
IGNORED = (*MAY_DIFFER, 'seed', 'precision', 'train', 'val', 'outer')


def make_evaluator(
    learner, transform, dataset: Dataset, tasks, *, shots: int, machine: Machine
) -> Callable[..., dict[str, np.ndarray]]:
  """Makes a function that measures a learner on a fixed list of tasks.

  Args:
    learner: adapts on the support set and is judged on the query set.
    transform: `transform(key, episode) -> episode`.
    dataset: a `Dataset` on the devices.
    tasks: (positions [T, W, S + Q], keys [T]) from `fixed_tasks`.
    shots: S.
    machine: the devices.

  Returns:
    `evaluator(params, stats, advance=None, stop=None)`, which returns metrics
    by name, [T] each; `advance(n)` is called as n more tasks are done, and None
    is returned once `stop` is true.
  """
  unit = machine.mesh.size * (machine.chunk or 1)
  size = -(-BATCH // unit) * unit

  @jax.jit
  def run(params, stats, image, tasks):
    def one_task(shared, task):
      params, stats, image = shared
      positions, key = task
      episode = transform(key, gather_episode(image, positions, shots=shots))
      _, (_, metrics) = learner.loss(params, stats, episode)
      return (), metrics

    over_tasks = mean_over_tasks(one_task, machine.mesh, machine.chunk)
    return over_tasks((params, stats, image), tasks)[1]

  def evaluator(params, stats, advance=lambda n: None, stop=lambda: False):
    num_tasks, done = len(tasks[0]), []
    for start in range(0, num_tasks, size):
      if stop():
        return None
      # The last batch is filled up with the first tasks, counted once only.
      rows = np.arange(start, start + size) % num_tasks
      batch = jax.tree.map(lambda x: x[rows], tasks)  # noqa: B023
      done.append(run(params, stats, dataset.image, batch))
      advance(min(size, num_tasks - start))
    done = jax.device_get(done)
    return jax.tree.map(lambda *x: np.concatenate(x)[:num_tasks], *done)

  return evaluator


def fixed_tasks(dataset: Dataset, phase: Phase, num_tasks: int):
  """The tasks of an evaluation: all distinct, the same for every run.

  Returns:
    positions [T, W, S + Q] int32 and keys [T] for the transform.
  """
  key = jax.random.fold_in(jax.random.key(0), data.SPLITS.index(phase.split))
  positions = distinct_tasks(key, dataset, num_tasks, **phase.shape)
  keys = jax.vmap(functools.partial(jax.random.fold_in, key))(
      jnp.arange(num_tasks)
  )
  return positions, keys


def phase_evaluator(config, phase: Phase, num_tasks: int, machine: Machine):
  """`make_evaluator` for the tasks of a phase."""
  dataset = experiment.load_split(config, phase)
  return make_evaluator(
      experiment.phase_learner(config, phase),
      experiment.phase_transform(config, phase),
      machine.put(dataset),
      fixed_tasks(dataset, phase, num_tasks),
      shots=phase.shots,
      machine=machine,
  )


def evaluate(config, source, workdir=None) -> dict:
  """Measures a checkpoint on `config.eval.num_tasks` tasks and says so.

  Args:
    config: its `eval` section says how; the rest must fit the checkpoint.
    source: a workdir or a checkpoint.
    workdir: where results go; by default `source`.

  Returns:
    What is written to WORKDIR/eval/NAME.json; NAME.npz has the metrics of each
    task.

  Raises:
    UserError: no sound checkpoint, or it does not fit the config.
  """
  saved = checkpoint.load(source, config.eval.checkpoint)
  check_same(saved.config, config, source, IGNORED)
  experiment.use_compilation_cache()
  phase, machine = experiment.eval_phase(config), experiment.machine(config)
  learner = experiment.phase_learner(config, phase)
  params, stats = machine.put(fit(learner, saved))
  evaluator = phase_evaluator(config, phase, config.eval.num_tasks, machine)
  with (
      jax.default_matmul_precision(config.precision),
      progress(config.eval.num_tasks, unit='task', desc='evaluating') as bar,
  ):
    metrics = evaluator(params, stats, bar.update)
  result = _summary(config, phase, saved, metrics)
  path = _write(pathlib.Path(workdir or source), result, metrics)
  print(describe(result))
  print(f'written to {path}')
  return result


def fit(learner, saved: Checkpoint) -> tuple:
  """The params and stats of a checkpoint, as a learner needs them.

  A head of another number of ways is one that every task resets: it takes the
  learner's. Moments that tasks keep to themselves start anew.

  Raises:
    UserError: the learner needs what the checkpoint lacks.
  """
  params, stats = learner.init(jax.random.key(0))
  carried = {k: v for k, v in stats.items() if k not in (EPISODE, SUPPORT)}

  def take(saved_tree):
    def leaf(path, fresh):
      value = saved_tree
      for key in path:
        value = value.get(key.key, {})
      if isinstance(value, dict):
        name = jax.tree_util.keystr(path, simple=True, separator='/')
        raise UserError(
            f'{saved.path} has no {name}, which config.eval.norm needs'
        )
      return value if value.shape == fresh.shape else fresh

    return leaf

  return (
      jax.tree_util.tree_map_with_path(take(saved.params), params),
      stats | jax.tree_util.tree_map_with_path(take(saved.stats), carried),
  )


def is_transductive(norm) -> bool:
  """Whether predictions depend on the other query images."""
  modes = [norm] if isinstance(norm, str) else [mode for _, mode in norm]
  return 'batch' in modes


def describe(result: dict) -> str:
  """The line that tells a person."""
  kind = 'transductive' if result['transductive'] else 'inductive'
  return (
      f'{result["data"]} {result["split"]}, {result["ways"]}-way '
      f'{result["shots"]}-shot, Q={result["queries"]}, '
      f'K={result["num_steps"]}, {kind}: '
      f'{percent(result["accuracy"], result["interval"])} over '
      f'{result["num_tasks"]} tasks, median {percent(result["median"])}, '
      f'loss {result["loss"]:.3f} ({result["checkpoint"]}, step '
      f'{result["step"]})'
  )


def _summary(config, phase: Phase, saved: Checkpoint, metrics) -> dict:
  mean, interval = mean_interval(metrics['accuracy'])
  return {
      'accuracy': mean,
      'interval': interval,
      'median': float(np.median(metrics['accuracy'])),
      'loss': float(metrics['loss'].mean()),
      'num_tasks': len(metrics['accuracy']),
      'data': config.data.name,
      **phase._asdict(),
      'transductive': is_transductive(phase.norm),
      'checkpoint': str(saved.path),
      'step': saved.step,
      'version': maml_jax.__version__,
      'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
      'config': config.to_dict(),
  }


def _write(workdir: pathlib.Path, result: dict, metrics) -> pathlib.Path:
  norm = result['norm'] if isinstance(result['norm'], str) else 'mixed'
  name = (
      f'{result["split"]}_{result["ways"]}w{result["shots"]}s'
      f'_q{result["queries"]}_k{result["num_steps"]}_{norm}'
      f'_{result["num_tasks"]}_step{result["step"]}'
  )
  path = workdir / 'eval' / f'{name}.json'
  path.parent.mkdir(parents=True, exist_ok=True)
  np.savez(path.with_suffix('.npz'), **metrics)
  write_text(path, json.dumps(result, indent=2))
  return path
