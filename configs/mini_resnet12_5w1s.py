"""python main.py --config=configs/mini_resnet12_5w1s.py

MAML with ResNet-12 as in the ALFA paper. Expected: 58.37 +-0.49 % (Baik et
al. 2020; transductive, 600 tasks). Hardware: one GPU (over 27 GB in the
paper). Time: not measured."""

from maml_jax import default_config


def get_config():
  config = default_config.get_config()
  config.data.update(name='mini_imagenet', normalize=True)
  config.model.encoder = 'resnet12'
  config.inner.update(frozen=('bn*',), remat=True)
  config.train.update(num_epochs=100, steps_per_epoch=500)
  config.train.update(meta_batch_size=2, tasks_per_chunk=1)
  config.val.num_tasks = 600
  return config
