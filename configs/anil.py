"""python main.py --config=configs/anil.py

ANIL: only the head is adapted. Expected: 46.7 % (Raghu et al. 2020; 32
filters, transductive), 48.4 % (LibFewShot). Hardware: one GPU. Time: not
measured."""

from maml_jax.config import load_preset
from maml_jax.methods import with_method


def get_config():
  return with_method(load_preset('mini_5w1s'), 'anil')
