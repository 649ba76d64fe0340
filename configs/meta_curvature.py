"""python main.py --config=configs/meta_curvature.py

Meta-Curvature: gradients are multiplied by learned matrices. Expected: 55.7
% (Park and Oliva 2019; Meta-Curvature 2, a bigger network). Hardware: one
GPU. Time: not measured."""

from maml_jax.config import load_preset
from maml_jax.methods import with_method


def get_config():
  return with_method(load_preset('mini_5w1s'), 'meta_curvature')
