"""python main.py --config=configs/tiered_5w5s.py

The `reproduce` setting of PyTorch-MAML. Expected: 70.30 % (MAML in Liu et
al. 2019, TPN; not verified; transductive). Hardware: one GPU. Time: not
measured."""

from maml_jax.config import load_preset


def get_config():
  return load_preset(
    'mini_5w5s',
    {'data.name': 'tiered_imagenet', 'model.encoder': 'wide_convnet4'},
  )
