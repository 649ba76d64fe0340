"""FC100: a split of CIFAR-100 by superclass into 60, 20 and 20 classes.

Oreshkin et al., "TADAM: Task dependent adaptive metric for improved few-shot
learning", 2018. No two splits share a superclass.
"""

from maml_jax.data import records
from maml_jax.data.datasets import cifar

__all__ = ['LAYOUT', 'SPEC', 'SPLIT_OF', 'TEST', 'VAL']

LAYOUT = cifar.describe_layout('FC100_')

VAL = (
  'large carnivores',
  'large omnivores and herbivores',
  'non-insect invertebrates',
  'small mammals',
)
TEST = ('aquatic mammals', 'insects', 'medium mammals', 'people')
SPLIT_OF = cifar.assign_splits(
  ' '.join(cifar.SUPERCLASSES[name] for name in VAL).split(),
  ' '.join(cifar.SUPERCLASSES[name] for name in TEST).split(),
)

SPEC = records.DatasetSpec(
  name='fc100',
  image_shape=cifar.IMAGE_SHAPE,
  layout=LAYOUT,
  find_records=cifar.make_record_finder('fc100', 'FC100_', SPLIT_OF),
  mean=cifar.MEAN,
  std=cifar.STD,
  num_classes={'train': 60, 'val': 20, 'test': 20},
  images_per_class=600,
)
