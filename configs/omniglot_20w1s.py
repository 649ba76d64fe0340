"""python main.py --config=configs/omniglot_20w1s.py

Expected: 95.8 % (MAML paper, full Omniglot, 60,000 iterations). Hardware:
one GPU. Time: not measured."""

from maml_jax import default_config


def get_config():
  config = default_config.get_config()
  config.data.name = 'omniglot'
  config.task.update(ways=20, queries=5)
  config.model.encoder = 'wide_convnet4'
  config.inner.update(num_steps=5, encoder_lr=0.1, classifier_lr=0.1)
  config.inner.frozen = ('bn',)
  config.train.update(num_epochs=300, steps_per_epoch=200, meta_batch_size=16)
  config.val.queries = 5
  config.eval.queries = 1
  return config
