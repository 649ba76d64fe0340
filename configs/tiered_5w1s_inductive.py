"""python main.py --config=configs/tiered_5w1s_inductive.py

The `template` setting of PyTorch-MAML, inductive. Expected: about 4 points
below tiered_5w1s (README of PyTorch-MAML). Hardware: one GPU. Time: not
measured."""

from maml_jax.config import load_preset


def get_config():
  return load_preset(
    'mini_5w1s_inductive',
    {'data.name': 'tiered_imagenet', 'model.encoder': 'wide_convnet4'},
  )
