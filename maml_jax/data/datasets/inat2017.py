"""iNaturalist 2017: species of animals, plants and fungi, resized to 84 x 84.

Van Horn et al., "The iNaturalist species classification and detection
dataset", 2018. The classes are those of the CSV files, often a subset of the
5,089 species; their number is not verified.

# differs from PyTorch-MAML: it has no validation classes. Without val.csv, a
fifth of the classes of train.csv is held out, selected by a hash of the names.
"""

import hashlib
from pathlib import Path

from maml_jax.data import csv_splits, records

__all__ = ['LAYOUT', 'SPEC']

LAYOUT = f"""\
images/ and fs-splits/{{train,val,test}}.csv (filename,label)
train_val_images/ and {{train,val,test}}.csv in the same directory
either without val.csv: a fifth of the training classes is used instead
{records.SPLIT_FOLDERS}"""

VAL = 0.2  # fraction of the training classes to hold out without val.csv


def _find_records(directory: Path) -> records.Splits:
  images = records.scan_images(directory)
  rows = csv_splits.find_csv_splits(SPEC.name, directory, 'val')
  if not rows:
    return records.find_split_folders(SPEC.name, images)
  splits = csv_splits.records_from_rows(SPEC.name, directory, images, rows)
  if 'val' not in rows:
    labels = sorted(
      {record.label for record in splits['train']},
      key=lambda label: hashlib.sha256(label.encode()).digest(),
    )
    held_out = set(labels[: max(1, round(VAL * len(labels)))])
    splits |= {
      'train': [r for r in splits['train'] if r.label not in held_out],
      'val': [r for r in splits['train'] if r.label in held_out],
    }
  return splits


SPEC = records.DatasetSpec(
  name='inat2017',
  image_shape=(84, 84, 3),
  layout=LAYOUT,
  find_records=_find_records,
  mean=(0.4905, 0.4961, 0.4330),
  std=(0.1737, 0.1713, 0.1779),
)
