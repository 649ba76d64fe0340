"""python main.py --config=configs/imaml.py

iMAML: the gradient of the minimum of a proximal problem. Expected: 49.3 %
(Rajeswaran et al. 2019). Hardware: one GPU. Time: not measured."""

from maml_jax.config import load_preset
from maml_jax.methods import with_method


def get_config():
  return with_method(load_preset('mini_5w1s'), 'imaml')
