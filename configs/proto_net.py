"""python main.py --config=configs/proto_net.py

ProtoNet: nearest class mean of the features, no inner step. Expected: 49.4
% (Snell et al. 2017; trained with more ways), 46.3 % (LibFewShot);
inductive. Hardware: one GPU. Time: not measured."""

from maml_jax.config import load_preset
from maml_jax.methods import with_method


def get_config():
  return with_method(load_preset('mini_5w1s'), 'proto_net')
