"""python main.py --config=configs/tiered_5w5s_inductive.py

PyTorch-MAML's `template`. Expected: some 4 points below tiered_5w5s (its
README, which has no table). Hardware: one GPU. Time: not measured."""

from configs import mini_5w5s_inductive


def get_config():
  config = mini_5w5s_inductive.get_config()
  config.data.name = 'tiered_imagenet'
  config.model.encoder = 'wide_convnet4'
  return config
