"""python main.py --config=configs/cub_5w1s.py

mini_5w1s on CUB-200. Expected: 54.73 +-0.97 % (MAML with 64 channels and
Q=16 in Chen et al. 2019; not verified). Hardware: one GPU. Time: not
measured."""

from maml_jax.config import load_preset


def get_config():
  return load_preset('mini_5w1s', {'data.name': 'cub'})
