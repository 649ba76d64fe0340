"""python main.py --config=configs/mini_pretrain.py --mode=pretrain

Pre-trains wide ConvNet4 on all classes of mini-ImageNet. Expected: 49.69 %
(SimpleShot CL2N, 1-shot, Wang et al. 2019). Hardware: 2 CPU cores, or one GPU
with --model.encoder=resnet12. Time: not measured."""

from maml_jax.config import load_preset
from maml_jax.methods import with_pretraining


def get_config():
  config = with_pretraining(load_preset('mini_5w1s'))
  config.model.encoder = 'wide_convnet4'
  config.train.update(num_epochs=60, steps_per_epoch=300)
  return config
