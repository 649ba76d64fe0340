"""python main.py --config=configs/fc100_5w1s.py

mini_5w1s on FC100, 32 x 32 pixels. Expected: no published result for this
setting. Hardware: one GPU. Time: not measured."""

from maml_jax.config import load_preset


def get_config():
  return load_preset('mini_5w1s', {'data.name': 'fc100'})
