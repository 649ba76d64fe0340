"""python main.py --config=configs/unicorn.py --checkpoint=CHECKPOINT

UNICORN-MAML from a pre-trained encoder, see mini_pretrain. Expected: 65.17 %
(Ye and Chao 2022; ResNet-12). Hardware: one GPU. Time: not measured."""

from maml_jax.config import load_preset
from maml_jax.methods import with_method


def get_config():
  config = with_method(load_preset('mini_5w1s'), 'unicorn')
  config.model.encoder = 'wide_convnet4'
  return config
