"""Injected faults: runs resume bit-exact and errors are one line.

Runs use the small model of `small_run`, in this process unless they are killed.
"""

import contextlib
import errno
import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import zlib

import jax
import numpy as np
import pytest
import small_run
from PIL import Image

from maml_jax import cli, data, saving
from maml_jax.evaluation import evaluate, results
from maml_jax.experiment import (
  checkpoint,
  checkpoint_writer,
  metrics_log,
  orbax_io,
  tensorboard,
)
from maml_jax.fewshot.contact_sheet import save_contact_sheet
from maml_jax.train import train
from maml_jax.utils import compilation_cache, files
from maml_jax.utils.errors import UserError
from studies import soak

TESTS = pathlib.Path(__file__).parent
EPOCHS = {'train__num_epochs': 3}


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module', autouse=True)
def use_small_run(cache):
  """Replaces all data and models by small ones."""
  with pytest.MonkeyPatch.context() as patch:
    small_run.use(patch, cache)
    yield


@pytest.fixture(scope='module')
def uninterrupted(use_small_run, tmp_path_factory):
  """The workdir of a run without faults."""
  workdir = tmp_path_factory.mktemp('uninterrupted')
  assert train(small_run.config(**EPOCHS), workdir) == 0
  return workdir


def assert_resume_is_bit_exact(uninterrupted, workdir):
  assert train(small_run.config(**EPOCHS), workdir) == 0
  assert soak.differences(uninterrupted, workdir) == []


# SIGKILL at a given call

TRAIN_UNTIL_KILLED = """
import importlib, os, signal, sys
import conftest, pytest, small_run
from maml_jax.fewshot.contact_sheet import save_contact_sheet
from maml_jax.train import train
workdir, cache, module, path, n = sys.argv[1:]
small_run.use(pytest.MonkeyPatch(), cache)
*owner, name = path.split('.')
target = importlib.import_module(module)
for part in owner:
  target = getattr(target, part)
function, calls_left = getattr(target, name), [int(n)]
def kill_at_last_call(*args, **kwargs):
  calls_left[0] -= 1
  if not calls_left[0]:
    os.kill(os.getpid(), signal.SIGKILL)
  return function(*args, **kwargs)
setattr(target, name, kill_at_last_call)
train(small_run.config(train__num_epochs=3), workdir)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  'function, n',
  [
    ('maml_jax.experiment.metrics_log MetricsLog.train', 4),
    ('orbax.checkpoint PyTreeCheckpointHandler.finalize', 2),
    ('maml_jax.experiment.orbax_io fsync', 1),
    ('orbax.checkpoint JsonCheckpointHandler.finalize', 2),
    ('maml_jax.experiment.metrics_log MetricsLog.write', 3),
  ],
  ids=[
    'training',
    'before-digests',
    'before-rename',
    'before-metadata',
    'between-best-and-metrics',
  ],
)
def test_resume_is_bit_exact_after_sigkill(
  uninterrupted, tmp_path, cache, function, n
):
  """The process is killed at the n-th call of a function."""
  args = [tmp_path, cache, *function.split(), str(n)]
  env = os.environ | {'PYTHONPATH': f'{TESTS}:{TESTS.parent}'}
  done = subprocess.run(
    [sys.executable, '-c', TRAIN_UNTIL_KILLED, *args],
    env=env,
    capture_output=True,
  )
  assert done.returncode == -signal.SIGKILL, done.stderr
  found = checkpoint.find(tmp_path, 'latest')
  assert found is None or found.step < 15
  assert_resume_is_bit_exact(uninterrupted, tmp_path)


# A full disk: from some point on no file can grow


@contextlib.contextmanager
def full_disk(size=0):
  """Limits the size of files, in bytes: writes raise 'File too large'."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def fill_disk_at(monkeypatch, uninterrupted):
  """Returns a function that fills the disk at the n-th call of a method."""
  del uninterrupted  # it has written the compiled programs
  name = 'jax_persistent_cache_min_compile_time_secs'
  before = getattr(jax.config, name)
  jax.config.update(name, 1e9)
  with contextlib.ExitStack() as stack:

    def fill_at(target, name, n):
      function, calls_left = getattr(target, name), [n]

      def fill_at_last_call(*args, **kwargs):
        calls_left[0] -= 1
        if not calls_left[0]:
          stack.enter_context(full_disk())
        return function(*args, **kwargs)

      monkeypatch.setattr(target, name, fill_at_last_call)
      return stack  # its `close` frees the disk

    yield fill_at
  jax.config.update(name, before)


@pytest.mark.slow
@pytest.mark.parametrize(
  'target, name, n, message',
  [
    (
      checkpoint_writer.CheckpointWriter,
      'save',
      2,
      'cannot write a checkpoint in .*checkpoints',
    ),
    (
      checkpoint_writer.CheckpointWriter,
      'save_if_best',
      1,
      'cannot write a checkpoint in',
    ),
    (metrics_log.MetricsLog, 'write', 4, 'cannot write .*metrics.jsonl'),
    (
      sys.modules[train.__module__],
      'lock_run_dir',
      1,
      'cannot write .*config.json',
    ),
  ],
  ids=['save', 'best', 'metrics', 'start'],
)
def test_resume_is_bit_exact_after_full_disk(
  uninterrupted, tmp_path, fill_disk_at, target, name, n, message
):
  with fill_disk_at(target, name, n) as full:
    with pytest.raises(UserError, match=f'{message}.*: File too la') as caught:
      train(small_run.config(**EPOCHS), tmp_path)
    assert '\n' not in str(caught.value)
    full.close()
  assert_resume_is_bit_exact(uninterrupted, tmp_path)


# Threads of Orbax exit before TensorStore reports the error to them.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_previous_checkpoint_is_kept_if_disk_fills_during_save(
  uninterrupted, tmp_path, fill_disk_at, monkeypatch, capfd
):
  """The check for free space before the save succeeds."""
  monkeypatch.setattr(checkpoint_writer, 'require_free_space', lambda *_: None)
  with fill_disk_at(checkpoint_writer.CheckpointWriter, 'save', 2) as full:
    with pytest.raises(UserError, match='cannot write a checkpoint in'):
      train(small_run.config(**EPOCHS), tmp_path)
    full.close()
  capfd.readouterr()  # threads of TensorStore print errors
  assert checkpoint.load(tmp_path, 'latest').step == 5
  assert_resume_is_bit_exact(uninterrupted, tmp_path)


def test_run_continues_without_tensorboard_if_disk_is_full(
  uninterrupted, tmp_path, monkeypatch
):
  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(tensorboard.RecordWriter, 'write', full)
  with pytest.warns(
    UserWarning, match='tensorboard: No space .*continuing without'
  ):
    assert_resume_is_bit_exact(uninterrupted, tmp_path)


def test_result_is_printed_if_it_cannot_be_saved(
  uninterrupted, fill_disk_at, capsys
):
  with fill_disk_at(results, 'write_result', 1) as full:
    with pytest.raises(UserError, match='cannot write .*eval.*: File too'):
      evaluate.evaluate(small_run.config(**EPOCHS), uninterrupted)
    full.close()
  assert 'accuracy' in capsys.readouterr().out
  evaluate.evaluate(small_run.config(**EPOCHS), uninterrupted)


@pytest.mark.parametrize(
  'write',
  [
    lambda path: files.write_text(path, 'new'),
    lambda path: saving.save_params(path, {'w': np.zeros(3)}, {}),
    lambda path: save_contact_sheet(Image.new('RGB', (2, 2)), path),
  ],
  ids=['text', 'parameters', 'contact sheet'],
)
def test_old_file_is_kept_if_disk_fills_during_write(
  write, tmp_path, monkeypatch
):
  path = tmp_path / 'file'
  path.write_text('old')

  def full(handle):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', full)
    with pytest.raises(UserError, match='cannot write .*file: No space left'):
      write(path)
  assert path.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [path]
  write(path)
  assert path.read_bytes() != b'old'
  assert list(tmp_path.iterdir()) == [path]


def test_failed_preparation_on_a_full_disk_leaves_no_files(tmp_path):
  """Space is allocated in advance; otherwise SIGBUS would kill the process."""
  source, root = tmp_path / 'source', tmp_path / 'prepared'
  draw_folder(source)
  for size in (10, 2_000, 40_000):
    with full_disk(size):
      with pytest.raises(UserError, match='folder: cannot write.*too large'):
        data.prepare('folder', source, root)
    assert list(root.rglob('*')) == [root / 'folder']
  data.prepare('folder', source, root)


def draw_folder(folder):
  rng = np.random.default_rng(0)
  for split in data.SPLITS:
    for i in range(2):
      path = folder / split / f'{split}{i}' / '0.png'
      path.parent.mkdir(parents=True)
      image = rng.integers(0, 256, (84, 84, 3), np.uint8)
      Image.fromarray(image).save(path)


@pytest.mark.parametrize('error', [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_other_os_errors_are_one_line(monkeypatch, capsys, error):
  def fail(*_):
    raise OSError(error, os.strerror(error), 'some/file')

  monkeypatch.setattr(cli, 'run', fail)
  assert cli.main([]) == 2
  message = f'error: some/file: {os.strerror(error)}\n'
  assert capsys.readouterr().err == message


# Damaged files of a run


INVALID_LINES = [
  'nonsense',
  '5',
  'null',
  '[]',
  '{"step": "1", "split": "val"}',
  '{"step": 1}',
  '{"step": 1, "split": "val", "loss": "low"}',
  '{"step": true, "split": "val"}',
  '1' * 5000,
  '[' * 100_000,
  '\x00\ufffd',
  '{"step": 5, "spl',
]


def test_invalid_lines_of_the_metrics_are_dropped(uninterrupted, tmp_path):
  train(small_run.config(train__num_epochs=1), tmp_path)
  file = tmp_path / metrics_log.METRICS_FILE
  lines = file.read_text().splitlines()
  file.write_text('\n'.join([*INVALID_LINES, *lines, *INVALID_LINES]))
  assert_resume_is_bit_exact(uninterrupted, tmp_path)
  assert len(file.read_text().splitlines()) == len(
    metrics_log.read_records(uninterrupted)
  )


@pytest.mark.parametrize('text', ['', '{', '[]', '{"seed": []}', 'null'])
def test_damaged_config_is_recovered_from_checkpoints(
  uninterrupted, tmp_path, text
):
  train(small_run.config(train__num_epochs=1), tmp_path)
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(UserError, match='seed: 0 -> 3'):
    train(small_run.config(seed=3), tmp_path)
  (tmp_path / 'config.json').write_text(text)
  assert_resume_is_bit_exact(uninterrupted, tmp_path)


def test_resume_skips_a_damaged_checkpoint(uninterrupted, tmp_path):
  train(small_run.config(train__num_epochs=2), tmp_path)
  damaged = checkpoint.load(tmp_path, 'latest').path
  shutil.rmtree(damaged / 'state' / 'd', ignore_errors=True)
  (damaged / 'state' / orbax_io.DIGESTS_FILE).write_text('{}')
  with pytest.warns(UserWarning, match=f'skipping a damaged .*{damaged}'):
    assert_resume_is_bit_exact(uninterrupted, tmp_path)


# The compilation cache

COMPILE = """
import warnings
import jax, jax.numpy as jnp
import small_run
from maml_jax.experiment import setup
setup.configure_jax(small_run.config())
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
warnings.simplefilter('error')
print(jax.jit(lambda x: (x @ x.T + jnp.sin(x)).sum())(jnp.eye(5)))
"""


def cache_entries(folder):
  return {path.name: path for path in folder.glob('*-cache')}


def test_damaged_cache_entries_are_recompiled(tmp_path):
  env = os.environ | {
    'PYTHONPATH': f'{TESTS}:{TESTS.parent}',
    'MAML_JAX_CACHE': str(tmp_path),
  }
  printed = []
  for damage in (None, truncate, flip_bit):
    before = cache_entries(tmp_path)
    for path in before.values():
      damage(path)
    done = subprocess.run(
      [sys.executable, '-c', COMPILE], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    printed.append(done.stdout)
    assert done.stderr == ''
    assert before.keys() <= cache_entries(tmp_path).keys() != set()
    for path in cache_entries(tmp_path).values():
      zlib.decompress(path.read_bytes())
  assert len(set(printed)) == 1


def truncate(path):
  os.truncate(path, path.stat().st_size // 2)


def flip_bit(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 8
  path.write_bytes(content)


def test_valid_cache_entries_are_checked_once(tmp_path, monkeypatch):
  (tmp_path / 'a-cache').write_bytes(zlib.compress(b'program'))
  (tmp_path / 'b-cache').write_bytes(compilation_cache.ZSTANDARD_MAGIC + b'...')
  (tmp_path / 'c-cache').write_bytes(b'x\x9cdamaged')
  (tmp_path / 'other').write_bytes(b'')
  for path in tmp_path.iterdir():
    os.utime(path, (1e9, 1e9))
  compilation_cache.remove_damaged_entries(tmp_path)
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == ['a-cache', 'b-cache', 'checked', 'other']
  monkeypatch.setattr(pathlib.Path, 'read_bytes', None)
  compilation_cache.remove_damaged_entries(tmp_path)
  compilation_cache.remove_damaged_entries(tmp_path / 'missing')


def test_tests_cited_in_reliability_page_exist():
  page = (TESTS.parent / 'docs' / 'reliability.md').read_text()
  cited = re.findall(r'`(test_\w+)\.py::(test_\w+)`', page)
  assert len(cited) > 20
  for module, function in cited:
    text = (TESTS / f'{module}.py').read_text()
    assert re.search(rf'^def {function}\(', text, re.MULTILINE), function
