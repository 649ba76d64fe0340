"""CIFAR-FS: a random split of CIFAR-100 into 64, 16 and 20 classes.

Bertinetto et al., "Meta-learning with differentiable closed-form solvers",
2019.
"""

from maml_jax.data import records
from maml_jax.data.datasets import cifar

__all__ = ['LAYOUT', 'SPEC', 'SPLIT_OF', 'TEST', 'VAL']

LAYOUT = cifar.describe_layout('CIFAR_FS_')

VAL = (
  'beaver beetle butterfly camel cattle crab crocodile flatfish lamp'
  ' maple_tree motorcycle otter sea shark television tractor'
)
TEST = (
  'baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy'
  ' rocket rose snail sweet_pepper table telephone wardrobe whale woman worm'
)
SPLIT_OF = cifar.assign_splits(VAL.split(), TEST.split())

SPEC = records.DatasetSpec(
  name='cifar_fs',
  image_shape=cifar.IMAGE_SHAPE,
  layout=LAYOUT,
  find_records=cifar.make_record_finder('cifar_fs', 'CIFAR_FS_', SPLIT_OF),
  mean=cifar.MEAN,
  std=cifar.STD,
  num_classes={'train': 64, 'val': 16, 'test': 20},
  images_per_class=600,
)
