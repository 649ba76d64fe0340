"""The dtypes and precision that config.precision sets in compiled programs."""

import re

import jax
import jax.numpy as jnp
import pytest
import small_run

from maml_jax.experiment import setup
from maml_jax.types import Batch, Episode

# config.precision -> dtype and precision of the operands of convolutions
EXPECTED = {
  'float32': ('f32', 'HIGHEST'),
  'tf32': ('f32', 'HIGH'),
  'bfloat16': ('bf16', None),
}


def test_table_lists_every_precision():
  assert set(EXPECTED) == set(setup.PRECISIONS)


@pytest.mark.parametrize('precision', EXPECTED)
def test_convolutions_have_the_configured_precision(precision):
  config = small_run.config(precision=precision)
  learner = setup.phase_learner(config, setup.train_phase(config))
  state = jax.eval_shape(learner.init, jax.random.key(0))
  batch = Batch(
    jax.ShapeDtypeStruct((6, 28, 28, 1), jnp.float32),
    jax.ShapeDtypeStruct((6,), jnp.int32),
  )
  with setup.matmul_precision(config):
    traced = jax.jit(jax.grad(learner.loss, has_aux=True)).trace(
      *state, Episode(batch, batch)
    )
    text = traced.lower(lowering_platforms=('cuda',)).as_text()
  dtype, expected = EXPECTED[precision]
  convolutions = [x for x in text.splitlines() if 'stablehlo.convolution' in x]
  assert convolutions
  for line in convolutions:
    dtypes = re.findall(r'tensor<[\dx]*x(\w+)>', line)
    assert set(dtypes) == {dtype}, line
    found = set(re.findall(r'precision (\w+)', line)) - {'DEFAULT'}
    assert found == ({expected} if expected else set())
