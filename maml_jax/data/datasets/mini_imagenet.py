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

LAYOUT = """\
train.csv, val.csv, test.csv (filename,label) beside a folder images/
class folders n01532829/, ..., with or without the CSV files beside them
zip archives of either, as they are
miniImageNet_category_split_{train_phase_train,val,test}.pickle"""

PICKLES = {
  'train': 'miniImageNet_category_split_train_phase_train.pickle',
  'val': 'miniImageNet_category_split_val.pickle',
  'test': 'miniImageNet_category_split_test.pickle',
}

Read = Callable[[], bytes]


def _source(directory: Path) -> records.Splits:
  paths = {split: directory / name for split, name in PICKLES.items()}
  if all(path.exists() for path in paths.values()):
    return {
      split: _from_pickle(split, paths[split]) for split in records.SPLITS
    }
  images = records.scan_images(directory)
  splits = {}
  for split in records.SPLITS:
    table = directory / f'{split}.csv'
    if images and table.exists():
      found = _from_csv(table, images)
    else:
      found = _from_folders(split, images)
    splits[split] = [
      records.Record(_label(split, wnid), stem, read)
      for (wnid, stem), read in sorted(found.items())
    ]
  return splits


def _from_csv(
  table: Path, images: Mapping[PurePosixPath, Read]
) -> dict[tuple[str, str], Read]:
  """Readers by class and file stem: the table says .jpg whatever there is."""
  by_stem = {path.stem: read for path, read in images.items()}
  with open(table, newline='', encoding='utf-8-sig') as file:
    rows = list(csv.DictReader(file))
  found = {}
  for row in rows:
    if not row.get('filename') or not row.get('label'):
      raise UserError(f'mini_imagenet: {table} lacks filename or label: {row}')
    stem = PurePosixPath(row['filename']).stem
    if stem not in by_stem:
      raise UserError(
        f'mini_imagenet: {table} lists {row["filename"]}, which is not among'
        f' the {len(images)} images under {table.parent}'
      )
    found[row['label'], stem] = by_stem[stem]
  return found


def _from_folders(
  split: str, images: Mapping[PurePosixPath, Read]
) -> dict[tuple[str, str], Read]:
  """Readers by class and file stem, for the usual classes of the split."""
  return {
    (path.parent.name, path.stem): read
    for path, read in images.items()
    if path.parent.name in CLASSES[split]
  }


def _from_pickle(split: str, path: Path) -> list[records.Record]:
  data, labels, content = safe_pickle.load_images(
    SPEC.name, path, SPEC.image_shape
  )
  wnids = {i: wnid for wnid, i in content.get('catname2label', {}).items()}
  names = {i: wnids.get(i, f'{split} class {i}') for i in set(labels)}
  return [
    records.Record(
      _label(split, names[labels[i]]),
      f'{i:05d}',
      functools.partial(records.encode_png, data[i]),
    )
    for i in np.argsort(labels, kind='stable')
  ]


def _label(split: str, wnid: str) -> str:
  return f'{CLASSES[split][wnid]}, {wnid}' if wnid in CLASSES[split] else wnid


SPEC = records.DatasetSpec(
  name='mini_imagenet',
  image_shape=(84, 84, 3),
  layout=LAYOUT,
  source=_source,
  mean=(0.471, 0.450, 0.403),
  std=(0.278, 0.268, 0.284),
  num_classes={'train': 64, 'val': 16, 'test': 20},
  images_per_class=600,
)
