"""Parameters of any model are saved and loaded without the trainer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maml_jax.learner import InnerConfig, Model, make_learner
from maml_jax.saving import load_params, save_params
from maml_jax.utils.errors import UserError


def build_learner(width=3, **inner):
  """Returns a learner whose statistics have leaves of several dtypes."""

  def init(key):
    kernel = jax.random.normal(key, (2, width))
    params = {
      'encoder': {'kernel': kernel, 'scale': jnp.bfloat16([1, 2])},
      'classifier': {'bias': jnp.arange(2.0)},
    }
    stats = {'count': jnp.int32(7), 'key': jax.random.key(3), 'list': [kernel]}
    return params, stats

  model = Model(init, lambda params, stats, inputs, *, train: (inputs, stats))
  return make_learner(model, InnerConfig(**inner), metric_fns={})


def comparable(tree):
  def convert(x):
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return str(x.dtype), np.asarray(jax.random.key_data(x) if is_key else x)

  return jax.tree.map(convert, tree)


LEARNED = {'learn_lr': 'tensor', 'per_step': ('lr',), 'precondition': 'none'}


@pytest.mark.parametrize('inner', [{}, LEARNED, {'rule': 'alfa'}], ids=str)
def test_saved_params_are_loaded_bit_exactly(tmp_path, inner):
  learner = build_learner(**inner)
  params, stats = learner.init(jax.random.key(0))
  save_params(tmp_path / 'model.npz', params, stats)
  loaded = load_params(tmp_path / 'model.npz', learner)
  jax.tree.map(
    np.testing.assert_array_equal,
    comparable(loaded),
    comparable((params, stats)),
  )
  assert jax.tree.structure(loaded) == jax.tree.structure((params, stats))
  assert [file.name for file in tmp_path.iterdir()] == ['model.npz']


def test_learner_with_other_steps_loads_values_per_step(tmp_path):
  params, stats = build_learner(num_steps=3, **LEARNED).init(jax.random.key(0))
  save_params(tmp_path / 'model.npz', params, stats)
  learner = build_learner(num_steps=5, **LEARNED)
  loaded, _ = load_params(tmp_path / 'model.npz', learner)
  assert loaded['inner']['lr']['classifier']['bias'].shape == (3,)


@pytest.mark.parametrize(
  'other, message',
  [
    (
      {'width': 4},
      'params/encoder/kernel is float32[2, 3], expected float32[2',
    ),
    (LEARNED, 'lacks params/inner/lr/classifier/bias'),
  ],
)
def test_file_of_another_model_is_an_error(tmp_path, other, message):
  save_params(tmp_path / 'a.npz', *build_learner().init(jax.random.key(0)))
  with pytest.raises(UserError) as error:
    load_params(tmp_path / 'a.npz', build_learner(**other))
  assert message in str(error.value)
  save_params(
    tmp_path / 'b.npz', *build_learner(**LEARNED).init(jax.random.key(0))
  )
  with pytest.raises(UserError, match='has unknown params/inner/lr'):
    load_params(tmp_path / 'b.npz', build_learner())


def test_missing_and_damaged_files_are_errors(tmp_path):
  learner = build_learner()
  with pytest.raises(UserError, match='no such file'):
    load_params(tmp_path / 'missing.npz', learner)
  file = tmp_path / 'model.npz'
  save_params(file, *learner.init(jax.random.key(0)))
  content = file.read_bytes()
  for damaged in (b'', b'text', content[:200], content[: len(content) // 2]):
    file.write_bytes(damaged)
    with pytest.raises(UserError, match='is not a file of save_params'):
      load_params(file, learner)
  np.savez(file, x=np.zeros(3))
  with pytest.raises(UserError, match='is not a file of save_params'):
    load_params(file, learner)


def test_file_that_cannot_be_written_is_an_error(tmp_path):
  with pytest.raises(UserError, match='cannot write .*missing/model.npz'):
    save_params(tmp_path / 'missing' / 'model.npz', {}, {})
