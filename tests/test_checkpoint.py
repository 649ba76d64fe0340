"""Tests of `maml_jax.experiment.checkpoint`."""

import hashlib
import json
import os
import pathlib
import shutil
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import path_names
import pytest
import small_run
import tensorstore
from hypothesis import example, given, settings

from maml_jax.experiment import checkpoint, checkpoint_writer, orbax_io
from maml_jax.train import resume_state
from maml_jax.types import MetaState
from maml_jax.utils.errors import NonFiniteError, UserError


def make_state(step: int) -> MetaState:
  """Returns a state as training has it, with values drawn from `step`."""
  rng = np.random.default_rng(step)
  params = {
    'encoder': {'conv1': {'kernel': rng.normal(size=(3, 3, 2, 4))}},
    'classifier': {'bias': rng.normal(size=5)},
  }
  params = jax.tree.map(jnp.float32, params)
  opt_state = optax.chain(optax.scale_by_adam(), optax.trace(0.9)).init(params)
  opt_state = jax.tree.map(lambda x: x + step, opt_state)
  stats = {'global': {'conv1': {'mean': jnp.full(4, step, jnp.float32)}}}
  return MetaState(jnp.int32(step), params, stats, opt_state)


def make_writer(path, step=None):
  return checkpoint_writer.CheckpointWriter(path, small_run.config(), step)


def save(path, *steps, resumed_from=None):
  with make_writer(path, resumed_from) as writer:
    for step in steps:
      writer.save(make_state(step))


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def saved_steps(path, which):
  folder = path / 'checkpoints' / which
  return sorted(int(p.name) for p in folder.iterdir())


@pytest.mark.parametrize('has_stats', [True, False])
def test_load_returns_the_saved_state(tmp_path, has_stats):
  expected = make_state(3)
  if not has_stats:
    expected = expected._replace(stats={})
  with make_writer(tmp_path) as writer:
    writer.save(expected)
  saved = checkpoint.load(tmp_path, 'latest')
  assert_equal(resume_state(make_state(0), saved), expected)
  assert saved.step == 3
  assert saved.config == small_run.config()
  assert saved.path == tmp_path / 'checkpoints' / 'latest' / '3'
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(saved.params))
  assert_equal(checkpoint.load(saved.path).params, saved.params)


def test_donating_a_state_does_not_change_its_pending_checkpoint(tmp_path):
  zero = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
  with make_writer(tmp_path) as writer:
    state = make_state(1)
    writer.save(state)
    jax.block_until_ready(zero(state))
  assert_equal(checkpoint.load(tmp_path, 'latest').params, make_state(1).params)


def test_two_newest_checkpoints_are_kept(tmp_path):
  save(tmp_path, 1, 2, 3)
  assert saved_steps(tmp_path, 'latest') == [2, 3]


def test_saved_step_is_not_saved_again(tmp_path):
  save(tmp_path, 1)
  path = tmp_path / 'checkpoints' / 'latest' / '1'
  before = path.stat().st_mtime_ns
  with make_writer(tmp_path, 1) as writer:
    writer.save(make_state(1))
  assert path.stat().st_mtime_ns == before
  assert saved_steps(tmp_path, 'latest') == [1]


def test_save_if_best_requires_an_improvement(tmp_path):
  with make_writer(tmp_path) as writer:
    assert writer.save_if_best(make_state(1), {'accuracy': 0.5})
    assert not writer.save_if_best(make_state(2), {'accuracy': 0.5})
  with make_writer(tmp_path) as writer:
    assert not writer.save_if_best(make_state(3), {'accuracy': 0.4})
    assert writer.save_if_best(make_state(4), {'accuracy': 0.6, 'loss': 1.0})
  saved = checkpoint.load(tmp_path)
  assert (saved.step, saved.metrics) == (4, {'accuracy': 0.6, 'loss': 1.0})
  assert saved_steps(tmp_path, 'best') == [1, 4]


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_non_finite_state_is_not_saved(tmp_path, bad):
  with make_writer(tmp_path) as writer:
    writer.save(make_state(1))
    with pytest.raises(NonFiniteError, match='step 2'):
      writer.save(make_state(2)._replace(stats={'mean': jnp.full(3, bad)}))
  assert saved_steps(tmp_path, 'latest') == [1]
  assert writer.last_step == 1


def test_missing_checkpoint_raises(tmp_path):
  assert checkpoint.find(tmp_path / 'nowhere', 'latest') is None
  with pytest.raises(UserError, match='no best checkpoint in .*[0-9]$'):
    checkpoint.load(tmp_path)
  save(tmp_path, 1)
  with pytest.raises(
    UserError, match='but a latest one: use --eval.checkpoint=latest'
  ):
    checkpoint.load(tmp_path)


@settings(path_names.SETTINGS, max_examples=2)
@given(path_names.NAMES)
@example('my project [2026]')
@example('run*')
@example('a\\b')
def test_workdir_and_export_may_have_any_name_without_backslash(
  tmp_path_factory, name
):
  folder = tmp_path_factory.mktemp('names')
  workdir, exported = folder / name / 'run', folder / 'exports' / name
  if '\\' in name:
    with pytest.raises(UserError, match='must not contain a backslash; rename'):
      make_writer(workdir)
    save(folder, 1)
    saved = checkpoint.load(folder, 'latest')
    with pytest.raises(UserError, match='must not contain a backslash; rename'):
      checkpoint.export(saved, exported)
    assert not (folder / name).exists() and not exported.parent.exists()
    return
  if name == 'run*':
    save(folder / 'runs' / 'run', 7)  # matches it
  save(workdir, 1)
  saved = checkpoint.load(workdir, 'latest')
  assert_equal(saved.params, make_state(1).params)
  assert checkpoint.export(saved, exported) == exported
  assert_equal(checkpoint.load(exported).params, make_state(1).params)
  assert os.listdir(exported.parent) == [name]


def test_unreadable_checkpoint_is_reported_before_training(
  tmp_path, monkeypatch
):
  """As with a file system that loses what is written."""

  def finalize(self, directory):
    pass

  monkeypatch.setattr(
    orbax_io.ocp.PyTreeCheckpointHandler, 'finalize', finalize
  )
  workdir = tmp_path / 'runs' / 'a'
  saved = checkpoint.Checkpoint(
    tmp_path, small_run.config(), 1, {'x': np.ones(2)}, {}, [], {}
  )
  for write in (make_writer, partial(checkpoint.export, saved)):
    with pytest.raises(UserError, match=r'in /.* cannot be read \(.*\): use'):
      write(workdir)
  assert not workdir.parent.exists()


def truncate(path: pathlib.Path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bit(path: pathlib.Path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize('damage', [truncate, flip_bit])
def test_damage_to_any_file_is_detected_or_harmless(tmp_path, damage):
  """Each file is damaged in turn; a checkpoint that loads is unchanged."""
  save(tmp_path, 1)
  valid = tmp_path / 'checkpoints' / 'latest' / '1'
  rejected = 0
  for file in filter(pathlib.Path.is_file, sorted(valid.rglob('*'))):
    copy = tmp_path / 'copy'
    shutil.copytree(valid, copy)
    damage(copy / file.relative_to(valid))
    try:
      saved = checkpoint.load(copy)
    except UserError as error:
      assert f'damaged checkpoint {copy}' in str(error)
      assert '\n' not in str(error)
      rejected += 1
    else:
      assert_equal(resume_state(make_state(0), saved), make_state(1))
      assert saved.config == small_run.config()
    shutil.rmtree(copy)
  assert rejected >= 3


def remove_state(folder):
  shutil.rmtree(folder / 'state')


def remove_content(folder):
  shutil.rmtree(folder)
  folder.mkdir()


def empty_metadata(folder):
  (folder / 'meta' / 'metadata').write_text('{}')


def remove_file(folder):
  next((folder / 'state').glob('**/d/*')).unlink()


def add_file(folder):
  (folder / 'state' / 'd' / 'more').write_bytes(b'')


def replace_file_by_link(folder):
  file = next((folder / 'state').glob('**/d/*'))
  file.rename(folder / 'elsewhere')
  file.symlink_to(folder / 'elsewhere')


def copy_state_of_other_step(folder):
  shutil.rmtree(folder / 'state')
  shutil.copytree(folder.with_name('1') / 'state', folder / 'state')


def copy_all_of_other_step(folder):
  shutil.rmtree(folder)
  shutil.copytree(folder.with_name('1'), folder)


DAMAGES = [
  remove_state,
  remove_content,
  empty_metadata,
  remove_file,
  add_file,
  replace_file_by_link,
  copy_state_of_other_step,
  copy_all_of_other_step,
]


@pytest.mark.parametrize('damage', DAMAGES)
def test_load_skips_damaged_checkpoints_with_a_warning(tmp_path, damage):
  save(tmp_path, 1, 2)
  newest = tmp_path / 'checkpoints' / 'latest' / '2'
  damage(newest)
  with pytest.warns(UserWarning, match=f'skipping a .* {newest}'):
    assert checkpoint.load(tmp_path, 'latest').step == 1
  remove_state(newest.with_name('1'))
  with pytest.warns(UserWarning):
    with pytest.raises(UserError, match='are damaged: 2, 1. Restore one, or'):
      checkpoint.load(tmp_path, 'latest')


@pytest.mark.parametrize(
  'damage', [remove_state, remove_content, empty_metadata]
)
def test_superseded_checkpoints_are_moved_aside(tmp_path, damage):
  save(tmp_path, 1, 2, 3)
  damage(tmp_path / 'checkpoints' / 'latest' / '3')
  for _ in range(2):
    with make_writer(tmp_path, 2) as writer:
      writer.save(make_state(3))
      writer.save(make_state(4))
  assert checkpoint.load(tmp_path, 'latest').step == 4
  assert saved_steps(tmp_path, 'latest') == [3, 4]
  aside = tmp_path / 'checkpoints' / 'aside'
  names = ['latest-3', 'latest-3-2', 'latest-4']
  assert sorted(p.name for p in aside.iterdir()) == names


@pytest.mark.parametrize('suffix', ['', '-1700000000000000'])
def test_unfinished_checkpoint_is_ignored_and_removed(tmp_path, suffix):
  save(tmp_path, 1)
  folder = tmp_path / 'checkpoints' / 'latest'
  shutil.copytree(folder / '1', folder / f'2.orbax-checkpoint-tmp{suffix}')
  assert checkpoint.load(tmp_path, 'latest').step == 1
  save(tmp_path, 2)
  assert saved_steps(tmp_path, 'latest') == [1, 2]


def test_metadata_is_plain_json(tmp_path):
  save(tmp_path, 1)
  path = tmp_path / 'checkpoints' / 'latest' / '1' / 'meta' / 'metadata'
  metadata = json.loads(path.read_text())
  assert metadata.keys() == {'config', 'metrics', 'digest', 'step'}


def test_partly_removed_older_checkpoint_is_harmless(tmp_path):
  """The process was killed while Orbax removed an old checkpoint."""
  save(tmp_path, 1, 2)
  remove_state(tmp_path / 'checkpoints' / 'latest' / '1')
  assert checkpoint.load(tmp_path, 'latest').step == 2
  save(tmp_path, 3, resumed_from=2)
  assert saved_steps(tmp_path, 'latest') == [2, 3]


@pytest.mark.parametrize('which', ['latest', 'best'])
def test_damaged_checkpoint_does_not_displace_a_valid_one(tmp_path, which):
  with make_writer(tmp_path) as writer:
    for step in (1, 2):
      writer.save(make_state(step))
      writer.save_if_best(make_state(step), {'accuracy': step / 10})
  folder = tmp_path / 'checkpoints' / which
  remove_state(folder / '2')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    with make_writer(
      tmp_path, checkpoint.load(tmp_path, 'latest').step
    ) as writer:
      writer.save(make_state(3))
      writer.save_if_best(make_state(3), {'accuracy': 0.3})
  assert saved_steps(tmp_path, which) == [1, 3]
  remove_state(folder / '3')
  with pytest.warns(UserWarning, match='skipping'):
    assert checkpoint.load(tmp_path, which).step == 1


# Manipulated checkpoints with valid digests


def sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def update_digests(folder):
  """Recomputes the digests of a checkpoint from its content."""
  meta = folder / 'meta' / 'metadata'
  metadata = json.loads(meta.read_text())
  metadata.pop('digest', None)
  canonical = json.dumps(metadata, sort_keys=True).encode()
  meta.write_text(json.dumps({**metadata, 'digest': sha256(canonical)}))
  state = folder / 'state'
  digests = {
    file.relative_to(state).as_posix(): sha256(file.read_bytes())
    for file in sorted(state.rglob('*'))
    if file.is_file() and file.name not in orbax_io.FILES_WITHOUT_DIGEST
  }
  (state / orbax_io.DIGESTS_FILE).write_text(json.dumps(digests))


@pytest.fixture
def manipulate(tmp_path):
  """Returns a function that makes a checkpoint with other metadata."""
  save(tmp_path, 1)
  folder = tmp_path / 'checkpoints' / 'latest' / '1'
  meta = folder / 'meta' / 'metadata'

  def change(**fields):
    metadata = json.loads(meta.read_text()) | fields
    kept = {name: x for name, x in metadata.items() if x != 'absent'}
    meta.write_text(json.dumps(kept))
    update_digests(folder)
    return folder

  return change


def test_checkpoint_of_an_older_version_without_step_is_loaded(manipulate):
  assert checkpoint.load(manipulate(step='absent')).step == 1


def config_with(field, value):
  config = small_run.config().to_dict()
  *sections, name = field.split('.')
  section = config
  for key in sections:
    section = section[key]
  section[name] = value
  return json.dumps(config)


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'config': 5}, 'JSON'),
    ({'config': '[]'}, ''),
    ({'config': '{}'}, 'the config .*data.augment_query'),
    ({'config': config_with('task.ways', 'five')}, 'not an integer'),
    ({'config': config_with('task.ways', 10**9)}, 'at most'),
    ({'config': config_with('model.norm', {'a': 1})}, 'model.norm'),
    ({'config': config_with('data.root', ['/'])}, 'data.root=.* not a'),
    ({'config': config_with('seed', True)}, 'not an integer'),
    ({'metrics': {'accuracy': 'high'}}, 'could not convert'),
    ({'metrics': None}, ''),
    ({'step': 7}, 'its arrays belong to step 1'),
  ],
)
def test_invalid_metadata_is_rejected(manipulate, fields, message):
  folder = manipulate(**fields)
  match = f'damaged checkpoint.*{message}'
  with pytest.raises(UserError, match=match) as caught:
    checkpoint.load(folder)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['../../../../secret', '/etc/passwd', '.'])
def test_digests_of_outside_files_are_rejected(tmp_path, manipulate, name):
  folder = manipulate()
  (tmp_path / 'secret').write_text('secret')
  digests = folder / 'state' / orbax_io.DIGESTS_FILE
  known = json.loads(digests.read_text())
  digests.write_text(json.dumps(known | {name: known['_METADATA']}))
  with pytest.raises(UserError, match='is missing'):
    checkpoint.load(folder)


def test_oversized_arrays_are_rejected_before_allocation(manipulate):
  folder = manipulate()
  store = tensorstore.KvStore.open(
    {'driver': 'ocdbt', 'base': f'file://{folder}/state/'}
  ).result()
  name = 'params.encoder.conv1.kernel/.zarray'
  layout = json.loads(store[name])
  layout['shape'][0] = 10**9
  store[name] = json.dumps(layout).encode()
  update_digests(folder)
  with pytest.raises(UserError, match='bytes declare arrays of 9600000'):
    checkpoint.load(folder)
