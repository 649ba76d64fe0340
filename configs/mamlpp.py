"""python main.py --config=configs/mamlpp.py

MAML++: learned rates per tensor and step, batch norm per step, multi-step
loss. Expected: 52.15 % (Antoniou et al. 2019; 48 filters, ensemble of five,
transductive). Hardware: one GPU. Time: not measured."""

from maml_jax.config import load_preset
from maml_jax.methods import with_method


def get_config():
  return with_method(load_preset('mini_5w1s'), 'mamlpp')
