"""python main.py --config=configs/tiered_5w1s.py

PyTorch-MAML's `reproduce`. Expected: 51.67 % (MAML in Liu et al. 2019, TPN;
recalled; transductive). Hardware: one GPU. Time: not measured."""

from maml_jax.config import load_preset


def get_config():
  config = load_preset('mini_5w1s')
  config.data.name = 'tiered_imagenet'
  config.model.encoder = 'wide_convnet4'
  return config
