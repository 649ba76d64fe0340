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
  'describe_layout',
  'make_record_finder',
  'assign_splits',
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
# In the order of the labels.
CLASSES = sorted(' '.join(SUPERCLASSES.values()).split())


def assign_splits(val: Iterable[str], test: Iterable[str]) -> Mapping[str, str]:
  """Returns the split of each class, given those of 'val' and 'test'."""
  split_of = dict.fromkeys(CLASSES, 'train')
  return split_of | dict.fromkeys(val, 'val') | dict.fromkeys(test, 'test')


def make_record_finder(
  name: str, prefix: str, split_of: Mapping[str, str]
) -> Callable[[Path], records.Splits]:
  """Makes a `find_records` for the layouts described by `describe_layout`.

  Args:
    name: the name of the data set, for messages.
    prefix: the prefix of the pickle file names; files without it are found too.
    split_of: the split of each class, for files that do not define splits.
  """

  def find_records(directory: Path) -> records.Splits:
    for start in (prefix, ''):
      file_names = {split: f'{start}{split}.pickle' for split in records.SPLITS}
      paths = records.find_split_files(name, directory, file_names)
      if paths:
        return {
          split: _records_from_pickle(name, split, path)
          for split, path in paths.items()
        }
    found = _records_from_python_version(name, directory)
    found = found or records.list_tfds_records(name, directory, 'cifar100')
    images = {} if found else records.scan_images(directory)
    found = found or [
      records.Record(path.parent.name, str(path), read)
      for path, read in images.items()
      if path.parent.name in split_of
    ]
    if not found:
      return records.find_split_folders(name, images)
    splits = {split: [] for split in records.SPLITS}
    for record in sorted(found, key=lambda record: record.label):
      if record.label not in split_of:
        raise UserError(f'{name}: unknown CIFAR-100 class {record.label!r}')
      splits[split_of[record.label]].append(record)
    return splits

  return find_records


def describe_layout(prefix: str) -> str:
  """Returns the accepted contents of the source directory, one per line."""
  return f"""\
{prefix}{{train,val,test}}.pickle, or {{train,val,test}}.pickle
cifar-100-python/ of CIFAR-100, extracted, or the files train and test in it
cifar100/3.0.2/ from: tfds build cifar100 --file_format=array_record
class folders apple/, ..., named like the classes of CIFAR-100
{records.SPLIT_FOLDERS}"""


def _records_from_pickle(
  name: str, split: str, path: Path
) -> list[records.Record]:
  images, labels, _ = safe_pickle.load_images(name, path, IMAGE_SHAPE)
  return [
    records.Record(
      f'{split} class {labels[i]}',
      f'{i:05d}',
      functools.partial(records.encode_png, images[i]),
    )
    for i in np.argsort(labels, kind='stable')
  ]


def _records_from_python_version(
  name: str, directory: Path
) -> list[records.Record]:
  """Lists the images of the "Python version" of CIFAR-100, if it is there."""
  file_names = {part: part for part in ('train', 'test')}
  for folder in (directory / 'cifar-100-python', directory):
    paths = records.find_split_files(name, folder, file_names)
    if paths:
      return [
        records.Record(
          label,
          f'{part} {i:05d}',
          functools.partial(records.encode_png, image),
        )
        for part, path in paths.items()
        for i, (image, label) in enumerate(_load_python_version(name, path))
      ]
  return []


def _load_python_version(
  name: str, path: Path
) -> Iterable[tuple[np.ndarray, str]]:
  """Yields the images and class names of one file of CIFAR-100."""
  content = safe_pickle.load(path)
  try:
    images = np.asarray(content['data'])
    labels = np.asarray(content['fine_labels'])
    is_valid = (
      images.dtype == np.uint8
      and images.shape == (len(labels), np.prod(IMAGE_SHAPE))
      and labels.dtype.kind in 'iu'
      and np.isin(labels, np.arange(len(CLASSES))).all()
    )
  except Exception:  # other content can raise nearly anything
    is_valid = False
  if not is_valid:
    raise UserError(
      f"{name}: {path}: expected 'data', uint8[N, {np.prod(IMAGE_SHAPE)}], and"
      f" 'fine_labels', N integers in 0..{len(CLASSES) - 1}"
    )
  images = images.reshape(-1, *np.roll(IMAGE_SHAPE, 1)).transpose(0, 2, 3, 1)
  return zip(images, map(CLASSES.__getitem__, labels), strict=True)
