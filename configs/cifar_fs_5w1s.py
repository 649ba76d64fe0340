"""python main.py --config=configs/cifar_fs_5w1s.py

mini_5w1s on CIFAR-FS, 32 x 32 pixels. Expected: 58.9 +-1.9 % (MAML in
Bertinetto et al. 2019). Hardware: one GPU. Time: not measured."""

from maml_jax.config import load_preset


def get_config():
  return load_preset('mini_5w1s', {'data.name': 'cifar_fs'})
