"""python main.py --config=configs/meta_sgd.py

Meta-SGD: a learned rate for each number of each parameter, one step.
Expected: 50.5 % (Li et al. 2017, as recalled). Hardware: one GPU. Time: not
measured."""

from maml_jax.config import load_preset
from maml_jax.methods import with_method


def get_config():
  return with_method(load_preset('mini_5w1s'), 'meta_sgd')
