"""python main.py --config=configs/alfa.py

ALFA: a network computes rates and decay from weights and gradients.
Expected: 50.6 % (Baik et al. 2020; ensemble of five). Hardware: one GPU.
Time: not measured."""

from maml_jax.config import load_preset
from maml_jax.methods import with_method


def get_config():
  return with_method(load_preset('mini_5w1s'), 'alfa')
