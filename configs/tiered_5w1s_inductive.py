"""python main.py --config=configs/tiered_5w1s_inductive.py

PyTorch-MAML's `template`. Expected: some 4 points below tiered_5w1s (its
README, which has no table). Hardware: one GPU. Time: not measured."""

from maml_jax.config import load_preset


def get_config():
  config = load_preset('mini_5w1s_inductive')
  config.data.name = 'tiered_imagenet'
  config.model.encoder = 'wide_convnet4'
  return config
