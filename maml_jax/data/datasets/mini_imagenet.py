"""mini-ImageNet: 100 classes of 600 images, 84 x 84.

Vinyals et al., "Matching networks for one shot learning", 2016, in the split
of Ravi & Larochelle, "Optimization as a model for few-shot learning", 2017.
"""

import csv
import functools
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

import numpy as np

from maml_jax.data import records, safe_pickle
from maml_jax.data.datasets.mini_imagenet_classes import CLASSES
from maml_jax.utils.errors import UserError

__all__ = ['LAYOUT', 'PICKLE_FILES', 'SPEC']

LAYOUT = """\
train.csv, val.csv, test.csv (filename,label) and a folder images/
class folders n01532829/, ..., with or without these CSV files
zip archives of either, not extracted
miniImageNet_category_split_{train_phase_train,val,test}.pickle"""

PICKLE_FILES = {
  'train': 'miniImageNet_category_split_train_phase_train.pickle',
  'val': 'miniImageNet_category_split_val.pickle',
  'test': 'miniImageNet_category_split_test.pickle',
}

ReadImage = Callable[[], bytes]


def _find_records(directory: Path) -> records.Splits:
  paths = {split: directory / name for split, name in PICKLE_FILES.items()}
  if all(path.exists() for path in paths.values()):
    return {
      split: _records_from_pickle(split, path) for split, path in paths.items()
    }
  images = records.scan_images(directory)
  splits = {}
  for split in records.SPLITS:
    csv_path = directory / f'{split}.csv'
    if images and csv_path.exists():
      readers = _readers_from_csv(csv_path, images)
    else:
      readers = _readers_from_folders(split, images)
    splits[split] = [
      records.Record(_class_name(split, wnid), stem, read)
      for (wnid, stem), read in sorted(readers.items())
    ]
  return splits


def _readers_from_csv(
  csv_path: Path, images: Mapping[PurePosixPath, ReadImage]
) -> dict[tuple[str, str], ReadImage]:
  """Returns read functions by class and file stem.

  The suffix is ignored: the CSV files list .jpg regardless of the format.
  """
  by_stem = {path.stem: read for path, read in images.items()}
  with open(csv_path, newline='', encoding='utf-8-sig') as file:
    rows = list(csv.DictReader(file))
  readers = {}
  for row in rows:
    if not row.get('filename') or not row.get('label'):
      raise UserError(
        f'mini_imagenet: {csv_path}: row without filename or label: {row}'
      )
    stem = PurePosixPath(row['filename']).stem
    if stem not in by_stem:
      raise UserError(
        f'mini_imagenet: {csv_path} lists {row["filename"]}, which is not among'
        f' the {len(images)} images under {csv_path.parent}'
      )
    readers[row['label'], stem] = by_stem[stem]
  return readers


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
  data, labels, content = safe_pickle.load_images(
    SPEC.name, path, SPEC.image_shape
  )
  wnids = {i: wnid for wnid, i in content.get('catname2label', {}).items()}
  names = {i: wnids.get(i, f'{split} class {i}') for i in set(labels)}
  return [
    records.Record(
      _class_name(split, names[labels[i]]),
      f'{i:05d}',
      functools.partial(records.encode_png, data[i]),
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
