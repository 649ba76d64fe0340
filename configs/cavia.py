"""python main.py --config=configs/cavia.py

CAVIA: only a context vector of 100 numbers is adapted. Expected: 47.2 %
(Zintgraf et al. 2019; 32 filters, transductive). Hardware: one GPU. Time:
not measured."""

from maml_jax.config import load_preset
from maml_jax.methods import with_method


def get_config():
  return with_method(load_preset('mini_5w1s'), 'cavia')
