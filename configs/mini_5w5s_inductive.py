"""python main.py --config=configs/mini_5w5s_inductive.py

The `template` setting of PyTorch-MAML, inductive. Expected: about 4 points
below mini_5w5s (README of PyTorch-MAML). Hardware: one GPU. Time: not
measured."""

from maml_jax.config import load_preset


def get_config():
  return load_preset('mini_5w1s_inductive', {'task.shots': 5})
