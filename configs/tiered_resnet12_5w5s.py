"""python main.py --config=configs/tiered_resnet12_5w5s.py

As MAML of the ALFA paper. Expected: 71.24 +-0.43 % (Baik et al. 2020,
recalled; transductive, 600 tasks). Hardware: one GPU (theirs: above 27 GB).
Time: not measured."""

from maml_jax.config import load_preset


def get_config():
  config = load_preset('mini_resnet12_5w5s')
  config.data.name = 'tiered_imagenet'
  return config
