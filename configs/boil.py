"""python main.py --config=configs/boil.py

BOIL: only the encoder is adapted, in one step. Expected: 49.6 % (Oh et al.
2021; 64 filters). Hardware: one GPU. Time: not measured."""

from maml_jax.config import load_preset
from maml_jax.methods import with_method


def get_config():
  return with_method(load_preset('mini_5w1s'), 'boil')
