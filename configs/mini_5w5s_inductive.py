"""python main.py --config=configs/mini_5w5s_inductive.py

PyTorch-MAML's `template`. Expected: some 4 points below mini_5w5s (its README,
which has no table). Hardware: one GPU. Time: see RESULTS.md."""

from maml_jax.config import load_preset


def get_config():
  config = load_preset('mini_5w1s_inductive')
  config.task.shots = 5
  return config
