"""python main.py --config=configs/mini_resnet12_5w5s.py

MAML with ResNet-12 as in the ALFA paper. Expected: 69.76 +-0.46 % (Baik et
al. 2020; transductive, 600 tasks). Hardware: one GPU (over 27 GB in the
paper). Time: not measured."""

from maml_jax.config import load_preset


def get_config():
  return load_preset('mini_resnet12_5w1s', {'task.shots': 5})
