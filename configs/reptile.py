"""python main.py --config=configs/reptile.py

Reptile: moves to the adapted parameters; trained with 15 shots. Expected:
47.07 % inductive, 49.97 % transductive (Nichol et al. 2018; 50 steps at
test). Hardware: one GPU. Time: not measured."""

from maml_jax.config import load_preset
from maml_jax.methods import with_method


def get_config():
  return with_method(load_preset('mini_5w1s'), 'reptile')
