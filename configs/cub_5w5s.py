"""python main.py --config=configs/cub_5w5s.py

mini_5w5s on CUB-200. Expected: 75.75 +-0.76 % (MAML with 64 channels and
Q=16 in Chen et al. 2019; not verified). Hardware: one GPU. Time: not
measured."""

from maml_jax.config import load_preset


def get_config():
  return load_preset('mini_5w5s', {'data.name': 'cub'})
