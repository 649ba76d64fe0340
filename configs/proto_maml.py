"""python main.py --config=configs/proto_maml.py

ProtoMAML: the head starts from class means. Expected: 62.6 % (Ye and Chao
2022; pre-trained ResNet-12). Hardware: one GPU. Time: not measured."""

from maml_jax.config import load_preset
from maml_jax.methods import with_method


def get_config():
  return with_method(load_preset('mini_5w1s'), 'proto_maml')
