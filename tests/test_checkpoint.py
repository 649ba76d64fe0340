"""Checkpoints: what is written is read back, or it is said to be damaged."""

import json
import pathlib
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_run
import tensorstore

from maml_jax.experiment import checkpoint
from maml_jax.train import resume_state
from maml_jax.types import MetaState
from maml_jax.utils.errors import UserError


def state(step: int) -> MetaState:
  """One of the shape that training has, its numbers told by the step."""
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


def saver(path, saved=None):
  return checkpoint.CheckpointWriter(path, small_run.config(), saved)


def save(path, *steps):
  with saver(path) as it:
    for step in steps:
      it.save(state(step))


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def steps(path, which):
  folder = path / 'checkpoints' / which
  return sorted(int(p.name) for p in folder.iterdir())


@pytest.mark.parametrize('stats', [True, False])
def test_reads_back_what_was_saved(tmp_path, stats):
  expected = state(3) if stats else state(3)._replace(stats={})
  with saver(tmp_path) as it:
    it.save(expected)
  saved = checkpoint.load(tmp_path, 'latest')
  assert_equal(resume_state(state(0), saved), expected)
  assert saved.step == 3
  assert saved.config == small_run.config()
  assert saved.path == tmp_path / 'checkpoints' / 'latest' / '3'
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(saved.params))
  assert_equal(checkpoint.load(saved.path).params, saved.params)


def test_what_runs_on_does_not_change_what_is_being_saved(tmp_path):
  run_on = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
  with saver(tmp_path) as it:
    given = state(1)
    it.save(given)
    jax.block_until_ready(run_on(given))
  assert_equal(checkpoint.load(tmp_path, 'latest').params, state(1).params)


def test_keeps_the_newest_two(tmp_path):
  save(tmp_path, 1, 2, 3)
  assert steps(tmp_path, 'latest') == [2, 3]


def test_saves_a_step_once(tmp_path):
  save(tmp_path, 1)
  path = tmp_path / 'checkpoints' / 'latest' / '1'
  before = path.stat().st_mtime_ns
  with saver(tmp_path, saved=1) as it:
    it.save(state(1))
  assert path.stat().st_mtime_ns == before
  assert steps(tmp_path, 'latest') == [1]


def test_the_best_is_above_all_before_it(tmp_path):
  with saver(tmp_path) as it:
    assert it.save_if_best(state(1), {'accuracy': 0.5})
    assert not it.save_if_best(state(2), {'accuracy': 0.5})
  with saver(tmp_path) as it:
    assert not it.save_if_best(state(3), {'accuracy': 0.4})
    assert it.save_if_best(state(4), {'accuracy': 0.6, 'loss': 1.0})
  saved = checkpoint.load(tmp_path)
  assert (saved.step, saved.metrics) == (4, {'accuracy': 0.6, 'loss': 1.0})
  assert steps(tmp_path, 'best') == [1, 4]


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_refuses_a_state_that_is_not_finite(tmp_path, bad):
  with saver(tmp_path) as it:
    it.save(state(1))
    with pytest.raises(checkpoint.NotFinite, match='step 2'):
      it.save(state(2)._replace(stats={'mean': jnp.full(3, bad)}))
  assert steps(tmp_path, 'latest') == [1]
  assert it.saved == 1


def test_says_if_there_is_none(tmp_path):
  assert checkpoint.find(tmp_path / 'nowhere', 'latest') is None
  with pytest.raises(UserError, match='no best checkpoint in .*[0-9]$'):
    checkpoint.load(tmp_path)
  save(tmp_path, 1)
  with pytest.raises(UserError, match='only those of .*checkpoint=latest'):
    checkpoint.load(tmp_path)


def truncate(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize('damage', [truncate, flip])
def test_no_damage_to_any_file_goes_unnoticed(tmp_path, damage):
  """Either the checkpoint is refused, or its arrays are what they were."""
  save(tmp_path, 1)
  sound = tmp_path / 'checkpoints' / 'latest' / '1'
  refused = 0
  for file in filter(pathlib.Path.is_file, sorted(sound.rglob('*'))):
    copy = tmp_path / 'copy'
    shutil.copytree(sound, copy)
    damage(copy / file.relative_to(sound))
    try:
      saved = checkpoint.load(copy)
    except UserError as error:
      assert f'damaged checkpoint {copy}' in str(error)
      assert '\n' not in str(error)
      refused += 1
    else:
      assert_equal(resume_state(state(0), saved), state(1))
      assert saved.config == small_run.config()
    shutil.rmtree(copy)
  assert refused >= 3


def half_written(folder):
  shutil.rmtree(folder / 'state')


def empty(folder):
  shutil.rmtree(folder)
  folder.mkdir()


def no_facts(folder):
  (folder / 'meta' / 'metadata').write_text('{}')


def a_file_missing(folder):
  next((folder / 'state').glob('**/d/*')).unlink()


def a_file_too_many(folder):
  (folder / 'state' / 'd' / 'more').write_bytes(b'')


def a_link(folder):
  file = next((folder / 'state').glob('**/d/*'))
  file.rename(folder / 'elsewhere')
  file.symlink_to(folder / 'elsewhere')


def arrays_of_another_step(folder):
  shutil.rmtree(folder / 'state')
  shutil.copytree(folder.with_name('1') / 'state', folder / 'state')


def all_of_another_step(folder):
  shutil.rmtree(folder)
  shutil.copytree(folder.with_name('1'), folder)


DAMAGES = [
  half_written,
  empty,
  no_facts,
  a_file_missing,
  a_file_too_many,
  a_link,
  arrays_of_another_step,
  all_of_another_step,
]


@pytest.mark.parametrize('damage', DAMAGES)
def test_uses_the_newest_sound_one_and_names_the_others(tmp_path, damage):
  save(tmp_path, 1, 2)
  newest = tmp_path / 'checkpoints' / 'latest' / '2'
  damage(newest)
  with pytest.warns(UserWarning, match=f'passed over .* {newest}'):
    assert checkpoint.load(tmp_path, 'latest').step == 1
  half_written(newest.with_name('1'))
  with pytest.warns(UserWarning):
    with pytest.raises(UserError, match='are damaged: 2, 1. Restore one, or'):
      checkpoint.load(tmp_path, 'latest')


@pytest.mark.parametrize('damage', [half_written, empty, no_facts])
def test_what_a_run_overtakes_is_set_aside(tmp_path, damage):
  save(tmp_path, 1, 2, 3)
  damage(tmp_path / 'checkpoints' / 'latest' / '3')
  for _ in range(2):
    with saver(tmp_path, saved=2) as it:
      it.save(state(3))
      it.save(state(4))
  assert checkpoint.load(tmp_path, 'latest').step == 4
  assert steps(tmp_path, 'latest') == [3, 4]
  aside = tmp_path / 'checkpoints' / 'aside'
  names = ['latest-3', 'latest-3-2', 'latest-4']
  assert sorted(p.name for p in aside.iterdir()) == names


@pytest.mark.parametrize('suffix', ['', '-1700000000000000'])
def test_an_unfinished_save_is_no_checkpoint(tmp_path, suffix):
  save(tmp_path, 1)
  folder = tmp_path / 'checkpoints' / 'latest'
  shutil.copytree(folder / '1', folder / f'2.orbax-checkpoint-tmp{suffix}')
  assert checkpoint.load(tmp_path, 'latest').step == 1
  save(tmp_path, 2)
  assert steps(tmp_path, 'latest') == [1, 2]


def test_facts_are_plain_json(tmp_path):
  save(tmp_path, 1)
  path = tmp_path / 'checkpoints' / 'latest' / '1' / 'meta' / 'metadata'
  facts = json.loads(path.read_text())
  assert facts.keys() == {'config', 'metrics', 'digest', 'step'}


def test_an_older_one_that_is_half_removed_is_in_nobodys_way(tmp_path):
  """Killed while Orbax removed it."""
  save(tmp_path, 1, 2)
  half_written(tmp_path / 'checkpoints' / 'latest' / '1')
  assert checkpoint.load(tmp_path, 'latest').step == 2
  save_on(tmp_path, 2, 3)
  assert steps(tmp_path, 'latest') == [2, 3]


@pytest.mark.parametrize('which', ['latest', 'best'])
def test_one_that_is_passed_over_pushes_no_sound_one_out(tmp_path, which):
  with saver(tmp_path) as it:
    for step in (1, 2):
      it.save(state(step))
      it.save_if_best(state(step), {'accuracy': step / 10})
  folder = tmp_path / 'checkpoints' / which
  half_written(folder / '2')
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    with saver(tmp_path, checkpoint.load(tmp_path, 'latest').step) as it:
      it.save(state(3))
      it.save_if_best(state(3), {'accuracy': 0.3})
  assert steps(tmp_path, which) == [1, 3]
  half_written(folder / '3')
  with pytest.warns(UserWarning, match='passed over'):
    assert checkpoint.load(tmp_path, which).step == 1


def save_on(path, saved, step):
  with saver(path, saved=saved) as it:
    it.save(state(step))


# Tampered with by somebody who knows how digests are made


def seal(folder):
  """Makes the digests of a checkpoint those of what it holds."""
  meta = folder / 'meta' / 'metadata'
  facts = json.loads(meta.read_text())
  facts.pop('digest', None)
  facts['digest'] = checkpoint._digest(checkpoint._canonical(facts))
  meta.write_text(json.dumps(facts))
  files = checkpoint._files(folder / 'state')
  digests = {name: checkpoint._digest(file) for name, file in files.items()}
  (folder / 'state' / checkpoint.DIGESTS_FILE).write_text(json.dumps(digests))


@pytest.fixture
def sealed(tmp_path):
  """Makes a checkpoint whose facts are changed, its digests with them."""
  save(tmp_path, 1)
  folder = tmp_path / 'checkpoints' / 'latest' / '1'
  meta = folder / 'meta' / 'metadata'

  def change(**facts):
    facts = json.loads(meta.read_text()) | facts
    kept = {name: x for name, x in facts.items() if x != 'absent'}
    meta.write_text(json.dumps(kept))
    seal(folder)
    return folder

  return change


def test_one_of_an_older_version_tells_no_step(sealed):
  assert checkpoint.load(sealed(step='absent')).step == 1


def config_with(field, value):
  config = small_run.config().to_dict()
  *sections, name = field.split('.')
  section = config
  for key in sections:
    section = section[key]
  section[name] = value
  return json.dumps(config)


@pytest.mark.parametrize(
  'facts, message',
  [
    ({'config': 5}, 'JSON'),
    ({'config': '[]'}, ''),
    ({'config': '{}'}, 'the config has no'),
    ({'config': config_with('task.ways', 'five')}, 'not an integer'),
    ({'config': config_with('task.ways', 10**9)}, 'at most'),
    ({'config': config_with('model.norm', {'a': 1})}, 'model.norm'),
    ({'config': config_with('data.root', ['/'])}, 'not a word'),
    ({'config': config_with('seed', True)}, 'not an integer'),
    ({'metrics': {'accuracy': 'high'}}, 'could not convert'),
    ({'metrics': None}, ''),
    ({'step': 7}, 'its arrays are of step 1'),
  ],
)
def test_facts_that_lie_are_refused(sealed, facts, message):
  folder = sealed(**facts)
  with pytest.raises(UserError, match=f'damaged checkpoint.*{message}') as it:
    checkpoint.load(folder)
  assert '\n' not in str(it.value)


@pytest.mark.parametrize('name', ['../../../../secret', '/etc/passwd', '.'])
def test_digests_cannot_name_files_elsewhere(tmp_path, sealed, name):
  folder = sealed()
  (tmp_path / 'secret').write_text('secret')
  digests = folder / 'state' / checkpoint.DIGESTS_FILE
  known = json.loads(digests.read_text())
  digests.write_text(json.dumps(known | {name: known['_METADATA']}))
  with pytest.raises(UserError, match='is missing'):
    checkpoint.load(folder)


def test_arrays_beyond_their_files_are_refused_before_they_are_made(sealed):
  folder = sealed()
  store = tensorstore.KvStore.open(
    {'driver': 'ocdbt', 'base': f'file://{folder}/state/'}
  ).result()
  name = 'params.encoder.conv1.kernel/.zarray'
  layout = json.loads(store[name])
  layout['shape'][0] = 10**9
  store[name] = json.dumps(layout).encode()
  seal(folder)
  with pytest.raises(UserError, match='bytes claim arrays of 9600000'):
    checkpoint.load(folder)
