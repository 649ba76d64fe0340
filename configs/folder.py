"""python main.py --config=configs/folder.py

Your own images: add --config.data.root=DIR, a folder with one folder per
class; it is prepared on first use. Expected: no published result. Hardware:
one GPU. Time: not measured."""

from maml_jax import default_config


def get_config():
  config = default_config.get_config()
  config.data.name = 'folder'
  config.task.queries = 5
  config.inner.frozen = ('bn',)
  config.train.update(num_epochs=50, steps_per_epoch=200)
  config.val.queries = 5
  config.eval.queries = 5
  return config
