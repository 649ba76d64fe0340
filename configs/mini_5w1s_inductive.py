"""python main.py --config=configs/mini_5w1s_inductive.py

The `template` setting of PyTorch-MAML. Expected: about 4 points below
mini_5w1s (README of PyTorch-MAML). Hardware: one GPU. Time: not measured."""

from maml_jax import default_config


def get_config():
  config = default_config.get_config()
  config.data.name = 'mini_imagenet'
  config.data.update(normalize=True, augment_support='flip')
  config.model.norm = 'episodic'
  config.inner.update(momentum=0.9, weight_decay=5e-4, head='zero')
  config.outer.update(optimizer='sgd', lr=0.01, weight_decay=5e-4)
  config.outer.update(schedule='step', milestones=(120, 140))
  config.train.update(num_epochs=150, steps_per_epoch=200)
  config.val.update(num_tasks=800, augment_support='flip')
  config.eval.update(num_tasks=8000, augment_support='flip')
  return config
