"""The directory of a run: its lock and its config."""

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Collection, Iterator

from ml_collections import ConfigDict

from maml_jax import config as config_lib
from maml_jax.utils import distributed
from maml_jax.utils.errors import UserError
from maml_jax.utils.files import new_directory, oserror_message, write_text

__all__ = [
  'RESUME_ADVICE',
  'RESUME_IGNORED_FIELDS',
  'lock_run_dir',
  'require_same_config',
]

LOCK, CONFIG = 'lock', 'config.json'
# Fields that may change when a run resumes: they do not affect its results.
RESUME_IGNORED_FIELDS = (
  'data.placement',
  'data.root',
  'eval',
  'inner.mixed_mode',
  'inner.remat',
  'inner.unroll',
  'train.num_epochs',
  'train.steps_per_call',
  'train.tasks_per_chunk',
)
RESUME_ADVICE = 'use another --workdir or --tag, or the config of that run'


@contextlib.contextmanager
def lock_run_dir(workdir: pathlib.Path, config: ConfigDict) -> Iterator[None]:
  """Locks a workdir for one training process and writes its config.

  The kernel releases the lock however the process ends. With several processes
  the main one holds the lock for all. If the block fails before it writes
  anything, a new workdir is removed.

  Args:
    workdir: created if missing.
    config: written to config.json.

  Raises:
    UserError: another process trains there, a checkpoint there was trained
      with another config, or the directory is not writable.
  """
  with contextlib.ExitStack() as stack:
    distributed.on_main_process(lambda: _lock(workdir, config, stack))
    yield


def _lock(workdir, config, stack) -> None:
  try:
    stack.enter_context(new_directory(workdir))
    stack.enter_context(_unused_files_removed(workdir))
    lock = stack.enter_context(open(workdir / LOCK, 'a'))
  except OSError as error:
    raise UserError(
      f'cannot write to {workdir}: {oserror_message(error)}'
    ) from error
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise UserError(f'another process is training in {workdir}') from None
  has_checkpoints = any((workdir / 'checkpoints').glob('*/*'))
  saved = config_lib.read_saved(workdir) if has_checkpoints else None
  if saved:  # otherwise the config in each checkpoint is compared
    require_same_config(
      saved, config, workdir, RESUME_IGNORED_FIELDS, RESUME_ADVICE
    )
  write_text(workdir / CONFIG, config_lib.to_json(config))


@contextlib.contextmanager
def _unused_files_removed(workdir: pathlib.Path):
  """Removes new files if the block fails before it writes others."""
  had_files = any(workdir.iterdir())
  try:
    yield
  except BaseException:
    files = list(workdir.iterdir())
    if not had_files and {file.name for file in files} <= {LOCK, CONFIG}:
      for file in files:
        file.unlink()
    raise


def require_same_config(
  saved: ConfigDict,
  config: ConfigDict,
  path: str | os.PathLike,
  ignore: Collection[str],
  advice: str = 'use the config of the checkpoint',
) -> None:
  """Checks that a config matches the saved one.

  Args:
    saved: the config of an existing run or checkpoint.
    config: the config that is requested now.
    path: of the run or checkpoint, for the message.
    ignore: fields and sections that may differ.
    advice: what to do, for the message.

  Raises:
    UserError: they differ; the message lists the fields.
  """
  differences = config_lib.config_differences(saved, config, ignore)
  if differences:
    raise UserError(
      f'{path} was created with a different config: '
      f'{"; ".join(differences)}: {advice}'
    )
