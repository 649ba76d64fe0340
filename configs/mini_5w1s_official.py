"""python main.py --config=configs/mini_5w1s_official.py

The setting of the paper's TensorFlow code. Expected: 48.70 +-1.84 % (MAML
paper; its weights, re-evaluated: 47.1 +-1.3). Hardware: one GPU. Time: not
measured."""

from maml_jax.config import load_preset


def get_config():
  config = load_preset('mini_5w1s')
  config.model.update(norm_scale=False, norm_eps=1e-3, init='xavier')
  # Its losses are sums: over 5 support images, over 75 query images.
  config.inner.update(encoder_lr=5 * 0.01, classifier_lr=5 * 0.01)
  config.outer.clip_value = 10 / 75
  config.eval.checkpoint = 'latest'
  return config
