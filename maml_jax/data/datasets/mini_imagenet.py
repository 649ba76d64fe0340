"""mini-ImageNet: 100 classes of 600 images, 84 x 84.

Vinyals et al., "Matching networks for one shot learning", 2016, in the split
of Ravi & Larochelle, "Optimization as a model for few-shot learning", 2017.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from maml_jax.data import csv_splits, records, safe_pickle
from maml_jax.data.datasets.mini_imagenet_classes import CLASSES

__all__ = ['LAYOUT', 'PICKLE_FILES', 'SPEC']

LAYOUT = f"""\
train.csv, val.csv, test.csv (filename,label) and a folder images/
class folders n01532829/, ..., with or without these CSV files
zip archives of either, not extracted
miniImageNet_category_split_{{train_phase_train,val,test}}.pickle
mini-imagenet-cache-{{train,val,test}}.pkl
{records.SPLIT_FOLDERS}"""

PICKLE_FILES = {
  'train': 'miniImageNet_category_split_train_phase_train.pickle',
  'val': 'miniImageNet_category_split_val.pickle',
  'test': 'miniImageNet_category_split_test.pickle',
}
CACHE_FILES = {
  split: f'mini-imagenet-cache-{split}.pkl' for split in records.SPLITS
}

ReadImage = Callable[[], bytes]


def _find_records(directory: Path) -> records.Splits:
  for file_names in (PICKLE_FILES, CACHE_FILES):
    paths = records.find_split_files(SPEC.name, directory, file_names)
    if paths:
      return {
        split: _records_from_pickle(split, path)
        for split, path in paths.items()
      }
  images = records.scan_images(directory)
  rows = csv_splits.find_csv_splits(SPEC.name, directory, *records.SPLITS)
  if not images:
    return {}
  splits = dict(
    csv_splits.records_from_rows(SPEC.name, directory, images, rows)
  )
  for split in set(records.SPLITS).difference(rows):
    splits[split] = [
      records.Record(wnid, stem, read)
      for (wnid, stem), read in sorted(
        _readers_from_folders(split, images).items()
      )
    ]
  if not any(splits.values()):
    splits = records.find_split_folders(SPEC.name, images)
  return {
    split: [r._replace(label=_class_name(split, r.label)) for r in found]
    for split, found in splits.items()
  }


def _readers_from_folders(
  split: str, images: Mapping[PurePosixPath, ReadImage]
) -> dict[tuple[str, str], ReadImage]:
  """Returns read functions by class and file stem, for standard classes."""
  return {
    (path.parent.name, path.stem): read
    for path, read in images.items()
    if path.parent.name in CLASSES[split]
  }


def _records_from_pickle(split: str, path: Path) -> list[records.Record]:
  images, labels, wnids = safe_pickle.load_images(
    SPEC.name, path, SPEC.image_shape
  )
  return [
    records.Record(
      _class_name(split, wnids.get(labels[i], f'{split} class {labels[i]}')),
      f'{i:05d}',
      functools.partial(records.encode_png, images[i]),
    )
    for i in np.argsort(labels, kind='stable')
  ]


def _class_name(split: str, wnid: str) -> str:
  """Returns, for example, 'robin, n01558993'."""
  return f'{CLASSES[split][wnid]}, {wnid}' if wnid in CLASSES[split] else wnid


SPEC = records.DatasetSpec(
  name='mini_imagenet',
  image_shape=(84, 84, 3),
  layout=LAYOUT,
  find_records=_find_records,
  mean=(0.471, 0.450, 0.403),
  std=(0.278, 0.268, 0.284),
  num_classes={'train': 64, 'val': 16, 'test': 20},
  images_per_class=600,
)
