"""python main.py --config=configs/mini_5w1s.py

The `reproduce` setting of PyTorch-MAML. Expected: 48.70 +-1.84 % (MAML
paper; transductive, 600 tasks, Q=1). Hardware: one GPU. Time: 14 h with
PyTorch-MAML, from its training log."""

from maml_jax import default_config


def get_config():
  config = default_config.get_config()
  config.data.name = 'mini_imagenet'
  config.inner.frozen = ('bn',)
  config.train.update(num_epochs=120, steps_per_epoch=500)
  config.val.num_tasks = 800
  config.eval.update(num_tasks=600, num_steps=10, queries=1)
  return config
