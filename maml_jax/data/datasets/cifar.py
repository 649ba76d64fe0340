"""CIFAR-100, of which few-shot data sets are splits: 600 images a class."""

import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from maml_jax.data import records, safe_pickle
from maml_jax.utils.errors import UserError

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
  """Split of each class, given those to validate and to test on."""
  split = dict.fromkeys(CLASSES, 'train')
  return split | dict.fromkeys(val, 'val') | dict.fromkeys(test, 'test')


def make_source(
  name: str, prefix: str, split_of: Mapping[str, str]
) -> Callable[[Path], records.Splits]:
  """A source that reads pickles, one a split, or TFDS files of CIFAR-100.

  Args:
    name: of the data set.
    prefix: of the pickles; they are also found without it.
    split_of: split of each class.
  """

  def find(directory: Path) -> records.Splits:
    for start in (prefix, ''):
      paths = {
        split: directory / f'{start}{split}.pickle' for split in records.SPLITS
      }
      if all(path.exists() for path in paths.values()):
        return {
          split: _from_pickle(name, split, paths[split])
          for split in records.SPLITS
        }
    splits = {split: [] for split in records.SPLITS}
    for record in records.tfds_records(name, directory, 'cifar100'):
      if record.label not in split_of:
        raise UserError(f'{name}: CIFAR-100 has no class {record.label!r}')
      splits[split_of[record.label]].append(record)
    return splits

  return find


def _from_pickle(name: str, split: str, path: Path) -> list[records.Record]:
  data, labels, _ = safe_pickle.load_images(name, path, IMAGE_SHAPE)
  return [
    records.Record(
      f'{split} class {labels[i]}',
      f'{i:05d}',
      functools.partial(records.encode_png, data[i]),
    )
    for i in np.argsort(labels, kind='stable')
  ]
