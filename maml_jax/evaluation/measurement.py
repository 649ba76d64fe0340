"""Measures a checkpoint on fixed tasks, and finds and saves results."""

import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable

import numpy as np

from maml_jax import data
from maml_jax.evaluation import results
from maml_jax.evaluation.runner import make_task_runner
from maml_jax.experiment import checkpoint, setup
from maml_jax.experiment.run_dir import (
  RESUME_IGNORED_FIELDS,
  require_same_config,
)
from maml_jax.experiment.setup import Phase
from maml_jax.experiment.task_source import (
  EvalTasks,
  eval_tasks,
)
from maml_jax.experiment.transfer import transfer_params
from maml_jax.learner import Learner
from maml_jax.utils import distributed
from maml_jax.utils.errors import UserError
from maml_jax.utils.files import expand_path
from maml_jax.utils.progress import progress_bar

__all__ = ['EVAL_IGNORED_FIELDS', 'Evaluation']

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


def _data_prefix(phase: Phase) -> str:
  """Returns the first part of the names of results on another data set."""
  if phase.data_root is None:
    return ''
  if not data.spec(phase.data).user_provided:
    return f'{phase.data}_'
  path = os.fsencode(expand_path(phase.data_root).resolve())
  return f'{phase.data}-{hashlib.sha256(path).hexdigest()[:8]}_'
