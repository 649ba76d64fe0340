"""python main.py --config=configs/tiered_resnet12_5w1s.py

As MAML of the ALFA paper. Expected: 58.58 +-0.49 % (Baik et al. 2020,
recalled; transductive, 600 tasks). Hardware: one GPU (theirs: above 27 GB).
Time: not measured."""

from maml_jax.config import load_preset


def get_config():
  config = load_preset('mini_resnet12_5w1s')
  config.data.name = 'tiered_imagenet'
  return config
