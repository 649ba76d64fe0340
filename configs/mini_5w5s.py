"""python main.py --config=configs/mini_5w5s.py

The `reproduce` setting of PyTorch-MAML. Expected: 63.11 +-0.92 % (MAML
paper; transductive, 600 tasks, Q=5). Hardware: one GPU. Time: not
measured."""

from maml_jax.config import load_preset


def get_config():
  return load_preset('mini_5w1s', {'task.shots': 5, 'eval.queries': 5})
