"""Checkpoints: what is written is read back, or it is said to be damaged."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from maml_jax import checkpoint
from maml_jax.errors import UserError
from maml_jax.train import resume_state
from maml_jax.types import MetaState


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
  return checkpoint.Saver(path, tiny.config(), saved)


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
  assert saved.config == tiny.config()
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
      assert saved.config == tiny.config()
    shutil.rmtree(copy)
  assert refused >= 3


def half_written(folder):
  shutil.rmtree(folder / 'state')


def empty(folder):
  shutil.rmtree(folder)
  folder.mkdir()


def no_facts(folder):
  (folder / 'meta' / 'metadata').write_text('{}')


@pytest.mark.parametrize('damage', [half_written, empty, no_facts])
def test_uses_the_newest_sound_one_and_names_the_others(tmp_path, damage):
  save(tmp_path, 1, 2)
  newest = tmp_path / 'checkpoints' / 'latest' / '2'
  damage(newest)
  with pytest.warns(UserWarning, match=f'passed over .* {newest}'):
    assert checkpoint.load(tmp_path, 'latest').step == 1
  damage(newest.with_name('1'))
  with pytest.warns(UserWarning), pytest.raises(UserError, match='are damaged'):
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


def test_an_unfinished_save_is_no_checkpoint(tmp_path):
  save(tmp_path, 1)
  folder = tmp_path / 'checkpoints' / 'latest'
  shutil.copytree(folder / '1', folder / '2.orbax-checkpoint-tmp')
  assert checkpoint.load(tmp_path, 'latest').step == 1
  save(tmp_path, 2)
  assert steps(tmp_path, 'latest') == [1, 2]


def test_facts_are_plain_json(tmp_path):
  save(tmp_path, 1)
  path = tmp_path / 'checkpoints' / 'latest' / '1' / 'meta' / 'metadata'
  facts = json.loads(path.read_text())
  assert facts.keys() == {'config', 'metrics', 'digest'}
