"""python main.py --config=configs/tiered_resnet12_5w1s.py

MAML with ResNet-12 as in the ALFA paper. Expected: 58.58 +-0.49 % (Baik et
al. 2020, not verified; transductive, 600 tasks). Hardware: one GPU (over 27
GB in the paper). Time: not measured."""

from maml_jax.config import load_preset


def get_config():
  return load_preset('mini_resnet12_5w1s', {'data.name': 'tiered_imagenet'})
