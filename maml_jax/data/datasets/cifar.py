"""CIFAR-100, the source of CIFAR-FS and FC100: 100 classes of 600 images."""

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from maml_jax.data import records, safe_pickle
from maml_jax.utils.errors import UserError

__all__ = [
  'CLASSES',
  'IMAGE_SHAPE',
  'MEAN',
  'STD',
  'SUPERCLASSES',
  'make_record_finder',
  'split_classes',
]

IMAGE_SHAPE = (32, 32, 3)
MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)

SUPERCLASSES = {
  'aquatic mammals': 'beaver dolphin otter seal whale',
  'fish': 'aquarium_fish flatfish ray shark trout',
  'flowers': 'orchid poppy rose sunflower tulip',
  'food containers': 'bottle bowl can cup plate',
  'fruit and vegetables': 'apple mushroom orange pear sweet_pepper',
  'household electrical devices': 'clock keyboard lamp telephone television',
  'household furniture': 'bed chair couch table wardrobe',
  'insects': 'bee beetle butterfly caterpillar cockroach',
  'large carnivores': 'bear leopard lion tiger wolf',
  'large man-made outdoor things': 'bridge castle house road skyscraper',
  'large natural outdoor scenes': 'cloud forest mountain plain sea',
  'large omnivores and herbivores': 'camel cattle chimpanzee elephant kangaroo',
  'medium mammals': 'fox porcupine possum raccoon skunk',
  'non-insect invertebrates': 'crab lobster snail spider worm',
  'people': 'baby boy girl man woman',
  'reptiles': 'crocodile dinosaur lizard snake turtle',
  'small mammals': 'hamster mouse rabbit shrew squirrel',
  'trees': 'maple_tree oak_tree palm_tree pine_tree willow_tree',
  'vehicles 1': 'bicycle bus motorcycle pickup_truck train',
  'vehicles 2': 'lawn_mower rocket streetcar tank tractor',
}
CLASSES = sorted(' '.join(SUPERCLASSES.values()).split())


def split_classes(val: Iterable[str], test: Iterable[str]) -> Mapping[str, str]:
  """Returns the split of each class, given those of 'val' and 'test'."""
  split_of = dict.fromkeys(CLASSES, 'train')
  return split_of | dict.fromkeys(val, 'val') | dict.fromkeys(test, 'test')


def make_record_finder(
  name: str, prefix: str, split_of: Mapping[str, str]
) -> Callable[[Path], records.Splits]:
  """Makes a `find_records` for pickles of splits or TFDS files of CIFAR-100.

  Args:
    name: the name of the data set, for messages.
    prefix: the prefix of the pickle file names; files without it are found too.
    split_of: the split of each class, for TFDS files.
  """

  def find_records(directory: Path) -> records.Splits:
    for start in (prefix, ''):
      paths = {
        split: directory / f'{start}{split}.pickle' for split in records.SPLITS
      }
      if all(path.exists() for path in paths.values()):
        return {
          split: _records_from_pickle(name, split, paths[split])
          for split in records.SPLITS
        }
    splits = {split: [] for split in records.SPLITS}
    for record in records.list_tfds_records(name, directory, 'cifar100'):
      if record.label not in split_of:
        raise UserError(f'{name}: unknown CIFAR-100 class {record.label!r}')
      splits[split_of[record.label]].append(record)
    return splits

  return find_records


def _records_from_pickle(
  name: str, split: str, path: Path
) -> list[records.Record]:
  data, labels, _ = safe_pickle.load_images(name, path, IMAGE_SHAPE)
  return [
    records.Record(
      f'{split} class {labels[i]}',
      f'{i:05d}',
      functools.partial(records.encode_png, data[i]),
    )
    for i in np.argsort(labels, kind='stable')
  ]
