"""What config.precision comes to in the programs that are compiled."""

import re

import jax
import jax.numpy as jnp
import pytest
import small_run

from maml_jax.experiment import setup
from maml_jax.types import Batch, Episode

# precision -> type of the factors of a convolution, and their precision
EXPECTED = {
  'float32': ('f32', 'HIGHEST'),
  'tf32': ('f32', 'HIGH'),
  'bfloat16': ('bf16', None),
}


def test_every_precision_is_in_the_table():
  assert set(EXPECTED) == set(setup.PRECISIONS)


@pytest.mark.parametrize('precision', EXPECTED)
def test_products_are_as_the_config_says(precision):
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
  kind, word = EXPECTED[precision]
  convolutions = [x for x in text.splitlines() if 'stablehlo.convolution' in x]
  assert convolutions
  for line in convolutions:
    types = re.findall(r'tensor<[\dx]*x(\w+)>', line)
    assert set(types) == {kind}, line
    assert set(re.findall(r'precision (\w+)', line)) - {'DEFAULT'} == (
      {word} if word else set()
    )
