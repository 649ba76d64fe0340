"""Faults, injected one by one: nothing is lost, and one line says what is.

Runs of the stand-in model, in this process unless they are killed.
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

from maml_jax import cli, data
from maml_jax.evaluation import evaluate, results
from maml_jax.experiment import checkpoint, metrics_log, setup, tensorboard
from maml_jax.train import train
from maml_jax.utils import compilation_cache
from maml_jax.utils.errors import UserError
from studies import soak

TESTS = pathlib.Path(__file__).parent
EPOCHS = {'train__num_epochs': 3}


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module', autouse=True)
def small(cache):
  """All data and models are the stand-ins."""
  with pytest.MonkeyPatch.context() as patch:
    small_run.use(patch, cache)
    yield


@pytest.fixture(scope='module')
def straight(small, tmp_path_factory):
  """The workdir of a run that met no fault."""
  workdir = tmp_path_factory.mktemp('straight')
  assert train(small_run.config(**EPOCHS), workdir) == 0
  return workdir


def assert_goes_on(straight, workdir):
  assert train(small_run.config(**EPOCHS), workdir) == 0
  assert soak.differences(straight, workdir) == []


# Killed at a definite point

KILLED = """
import importlib, os, signal, sys
import conftest, pytest, tiny
from maml_jax.train import train
workdir, cache, module, path, n = sys.argv[1:]
small_run.use(pytest.MonkeyPatch(), cache)
*owner, name = path.split('.')
target = importlib.import_module(module)
for part in owner:
  target = getattr(target, part)
function, left = getattr(target, name), [int(n)]
def called(*args, **kwargs):
  left[0] -= 1
  if not left[0]:
    os.kill(os.getpid(), signal.SIGKILL)
  return function(*args, **kwargs)
setattr(target, name, called)
train(small_run.config(train__num_epochs=3), workdir)
"""


@pytest.mark.parametrize(
  'point, n',
  [
    ('maml_jax.metrics Log.train', 4),
    ('maml_jax.checkpoint _Handler.finalize', 2),
    ('maml_jax.checkpoint sync', 1),
    ('orbax.checkpoint JsonCheckpointHandler.finalize', 2),
    ('maml_jax.metrics Log.write', 3),
  ],
  ids=['step', 'async save', 'before its name', 'before meta', 'best and log'],
)
def test_killed_it_goes_on_to_the_same_bits(
  straight, tmp_path, cache, point, n
):
  args = [tmp_path, cache, *point.split(), str(n)]
  env = os.environ | {'PYTHONPATH': f'{TESTS}:{TESTS.parent}'}
  done = subprocess.run(
    [sys.executable, '-c', KILLED, *args], env=env, capture_output=True
  )
  assert done.returncode == -signal.SIGKILL, done.stderr
  found = checkpoint.find(tmp_path, 'latest')
  assert found is None or found.step < 15
  assert_goes_on(straight, tmp_path)


# A full disk: every write to a file is refused from some point on


@contextlib.contextmanager
def full_disk():
  """Files cannot grow: 'File too large'. Python ignores the signal."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def full_at(monkeypatch, straight):
  """Makes the disk full at the n-th call of a method; lifts it in the end."""
  del straight  # compiled programs are written before
  name = 'jax_persistent_cache_min_compile_time_secs'
  before = getattr(jax.config, name)
  jax.config.update(name, 1e9)
  with contextlib.ExitStack() as stack:

    def at(target, name, n):
      function, left = getattr(target, name), [n]

      def called(*args, **kwargs):
        left[0] -= 1
        if not left[0]:
          stack.enter_context(full_disk())
        return function(*args, **kwargs)

      monkeypatch.setattr(target, name, called)
      return stack

    yield at
  jax.config.update(name, before)


@pytest.mark.parametrize(
  'target, name, n, message',
  [
    (
      checkpoint.CheckpointWriter,
      'save',
      2,
      'cannot write a checkpoint in .*checkpoints',
    ),
    (
      checkpoint.CheckpointWriter,
      'save_if_best',
      1,
      'cannot write a checkpoint in',
    ),
    (metrics_log.MetricsLog, 'write', 4, 'cannot write .*metrics.jsonl'),
    (sys.modules[train.__module__], 'claim', 1, 'cannot write .*config.json'),
  ],
  ids=['save', 'best', 'metrics', 'start'],
)
def test_a_full_disk_ends_a_run_that_loses_nothing(
  straight, tmp_path, full_at, target, name, n, message
):
  with full_at(target, name, n) as lifted:
    with pytest.raises(UserError, match=f'{message}.*: File too la') as caught:
      train(small_run.config(**EPOCHS), tmp_path)
    assert '\n' not in str(caught.value)
    lifted.close()
  assert_goes_on(straight, tmp_path)


# TensorStore answers threads of Orbax that have given up by then.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_disk_that_is_full_in_mid_save_keeps_the_one_before(
  straight, tmp_path, full_at, monkeypatch, capfd
):
  """There was room when it began."""
  monkeypatch.setattr(checkpoint, 'check_room', lambda *_: None)
  with full_at(checkpoint.CheckpointWriter, 'save', 2) as lifted:
    with pytest.raises(UserError, match='cannot write a checkpoint in'):
      train(small_run.config(**EPOCHS), tmp_path)
    lifted.close()
  capfd.readouterr()  # TensorStore's threads complain there
  assert checkpoint.load(tmp_path, 'latest').step == 5
  assert_goes_on(straight, tmp_path)


def test_without_room_for_tensorboard_a_run_goes_on(
  straight, tmp_path, monkeypatch
):
  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(tensorboard.RecordWriter, 'write', full)
  with pytest.warns(UserWarning, match='tensorboard: No space left .*without'):
    assert_goes_on(straight, tmp_path)


def test_a_result_that_cannot_be_kept_is_printed(straight, full_at, capsys):
  with full_at(results, 'write_result', 1) as lifted:
    with pytest.raises(UserError, match='cannot write .*eval.*: File too'):
      evaluate.evaluate(small_run.config(**EPOCHS), straight)
    lifted.close()
  assert 'accuracy' in capsys.readouterr().out
  evaluate.evaluate(small_run.config(**EPOCHS), straight)


def test_a_full_disk_in_preparing_data_leaves_nothing(tmp_path, monkeypatch):
  """The images get room before they are written: else a bus error would end."""
  given, root = tmp_path / 'given', tmp_path / 'prepared'
  draw_folder(given)
  for size in (10, 2_000, 40_000):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
      with pytest.raises(UserError, match='folder: cannot write.*too large'):
        data.prepare('folder', given, root)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(root.rglob('*')) == [root / 'folder']
  data.prepare('folder', given, root)


def draw_folder(folder):
  from PIL import Image

  rng = np.random.default_rng(0)
  for split in data.SPLITS:
    for i in range(2):
      path = folder / split / f'{split}{i}' / '0.png'
      path.parent.mkdir(parents=True)
      image = rng.integers(0, 256, (84, 84, 3), np.uint8)
      Image.fromarray(image).save(path)


@pytest.mark.parametrize('error', [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_what_the_system_refuses_elsewhere_is_one_line(
  monkeypatch, capsys, error
):
  def refused(*_):
    raise OSError(error, os.strerror(error), 'some/file')

  monkeypatch.setattr(cli, 'run', refused)
  assert cli.main([]) == 2
  message = f'error: some/file: {os.strerror(error)}\n'
  assert capsys.readouterr().err == message


# Damage to what a run goes on from


GARBAGE = [
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


def test_lines_of_garbage_in_the_metrics_are_dropped(straight, tmp_path):
  train(small_run.config(train__num_epochs=1), tmp_path)
  file = tmp_path / metrics_log.METRICS_FILE
  lines = file.read_text().splitlines()
  file.write_text('\n'.join([*GARBAGE, *lines, *GARBAGE]))
  assert_goes_on(straight, tmp_path)
  assert len(file.read_text().splitlines()) == len(
    metrics_log.read_records(straight)
  )


@pytest.mark.parametrize('text', ['', '{', '[]', '{"seed": []}', 'null'])
def test_a_damaged_config_is_told_by_the_checkpoints(straight, tmp_path, text):
  train(small_run.config(train__num_epochs=1), tmp_path)
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(UserError, match='seed: 0 -> 3'):
    train(small_run.config(seed=3), tmp_path)
  (tmp_path / 'config.json').write_text(text)
  assert_goes_on(straight, tmp_path)


def newest(workdir):
  folder = workdir / 'checkpoints' / 'latest'
  return max(folder.iterdir(), key=lambda path: int(path.name))


def test_a_damaged_newest_checkpoint_is_passed_over(straight, tmp_path):
  train(small_run.config(train__num_epochs=2), tmp_path)
  damaged = newest(tmp_path)
  shutil.rmtree(damaged / 'state' / 'd', ignore_errors=True)
  (damaged / 'state' / checkpoint.DIGESTS_FILE).write_text('{}')
  with pytest.warns(UserWarning, match=f'passed over a damaged .*{damaged}'):
    assert_goes_on(straight, tmp_path)


# Compiled programs

COMPILES = """
import sys, warnings
import jax, jax.numpy as jnp
import small_run
from maml_jax import experiment
experiment.prepare_jax(small_run.config())
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
warnings.simplefilter('error')
print(jax.jit(lambda x: (x @ x.T + jnp.sin(x)).sum())(jnp.eye(5)))
"""


def programs(folder):
  return {path.name: path for path in folder.glob('*-cache')}


def test_damaged_programs_are_compiled_anew(tmp_path):
  env = os.environ | {
    'PYTHONPATH': f'{TESTS}:{TESTS.parent}',
    'MAML_JAX_CACHE': str(tmp_path),
  }
  printed = []
  for damage in (None, soak_truncate, soak_flip):
    before = programs(tmp_path)
    for path in before.values():
      damage(path)
    done = subprocess.run(
      [sys.executable, '-c', COMPILES], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    printed.append(done.stdout)
    assert done.stderr == ''
    assert before.keys() <= programs(tmp_path).keys() != set()
    for path in programs(tmp_path).values():
      zlib.decompress(path.read_bytes())
  assert len(set(printed)) == 1


def soak_truncate(path):
  os.truncate(path, path.stat().st_size // 2)


def soak_flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 8
  path.write_bytes(content)


def test_sound_programs_are_looked_at_once(tmp_path, monkeypatch):
  (tmp_path / 'a-cache').write_bytes(zlib.compress(b'program'))
  (tmp_path / 'b-cache').write_bytes(compilation_cache.ZSTANDARD_MAGIC + b'...')
  (tmp_path / 'c-cache').write_bytes(b'x\x9cdamaged')
  (tmp_path / 'other').write_bytes(b'')
  for path in tmp_path.iterdir():
    os.utime(path, (1e9, 1e9))
  setup._drop_damaged(tmp_path)
  names = sorted(path.name for path in tmp_path.iterdir())
  assert names == ['a-cache', 'b-cache', 'checked', 'other']
  monkeypatch.setattr(pathlib.Path, 'read_bytes', None)
  setup._drop_damaged(tmp_path)
  setup._drop_damaged(tmp_path / 'missing')


def test_the_page_of_faults_names_tests_that_are():
  page = (TESTS.parent / 'docs' / 'reliability.md').read_text()
  named = re.findall(r'`(test_\w+)\.py::(test_\w+)`', page)
  assert len(named) > 20
  for module, function in named:
    text = (TESTS / f'{module}.py').read_text()
    assert re.search(rf'^def {function}\(', text, re.MULTILINE), function
