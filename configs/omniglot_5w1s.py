"""python main.py --config=configs/omniglot_5w1s.py

Expected: 98.7 % (MAML paper, full Omniglot); at least 95 % with the two
small background sets. Hardware: 2 CPU cores. Time: under 30 minutes."""

from maml_jax import default_config


def get_config():
  config = default_config.get_config()
  config.data.name = 'omniglot'
  config.task.queries = 5
  config.inner.update(num_steps=1, encoder_lr=0.4, classifier_lr=0.4)
  config.inner.frozen = ('bn',)
  config.train.update(num_epochs=20, steps_per_epoch=100, meta_batch_size=16)
  config.val.queries = 5
  config.eval.update(num_steps=3, queries=1)
  return config
