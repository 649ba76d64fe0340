"""python main.py --config=configs/mini_resnet12_5w5s.py

As MAML of the ALFA paper. Expected: 69.76 +-0.46 % (Baik et al. 2020;
transductive, 600 tasks). Hardware: one GPU (theirs: above 27 GB). Time: not
measured."""

from maml_jax.config import load_preset


def get_config():
  config = load_preset('mini_resnet12_5w1s')
  config.task.shots = 5
  return config
