"""python main.py

5-way 1-shot on the built-in glyphs. Expected: at least 90 % on 600 tasks of
unseen scripts (`make demo`). Hardware: 2 CPU cores. Time: under 4 minutes."""

from maml_jax import default_config


def get_config():
  config = default_config.get_config()
  config.task.queries = 5
  config.inner.update(num_steps=1, encoder_lr=0.4, classifier_lr=0.4)
  config.inner.frozen = ('bn',)
  config.train.update(num_epochs=8, steps_per_epoch=100, meta_batch_size=16)
  config.val.queries = 5
  config.eval.num_steps = 3
  return config
