"""CUB-200-2011: 200 bird species, about 59 images each, resized to 84 x 84.

Wah et al., "The Caltech-UCSD Birds-200-2011 dataset", 2011. Without CSV files
the split is that of Chen et al., "A closer look at few-shot classification",
2019: numbering the classes from 0, classes 0, 2, 4, ... are for training,
classes 1, 5, 9, ... for validation, and classes 3, 7, 11, ... for testing.

Whole images are resized without keeping their aspect ratio. The normalization
statistics are those of ImageNet, as in PyTorch-MAML.
"""

import re
from pathlib import Path

from maml_jax.data import csv_splits, records

__all__ = ['LAYOUT', 'SPEC']

LAYOUT = f"""\
images/ and fs-splits/{{train,val,test}}.csv (filename,label)
CUB_200_2011/images/001.Black_footed_Albatross/, ..., without CSV files
caltech_birds2011/0.2.0/ from: tfds build caltech_birds2011 \
--file_format=array_record
{records.SPLIT_FOLDERS}"""

CLASS_FOLDER = re.compile(r'(\d{3})\.')  # the numbers begin at 001


def _find_records(directory: Path) -> records.Splits:
  images = records.scan_images(directory)
  if rows := csv_splits.find_csv_splits(SPEC.name, directory):
    return csv_splits.records_from_rows(SPEC.name, directory, images, rows)
  splits = {split: [] for split in records.SPLITS}
  for record in records.list_tfds_records(
    SPEC.name, directory, 'caltech_birds2011'
  ):
    number = int(record.label)  # TFDS numbers the classes from 0
    label = f'{number + 1:03d}'
    splits[_split_of(number)].append(record._replace(label=label))
  if any(splits.values()):
    return splits
  if found := records.find_split_folders(SPEC.name, images):
    return found
  for path, read in images.items():
    match = CLASS_FOLDER.match(path.parent.name)
    if match and 'segmentations' not in path.parts:
      record = records.Record(path.parent.name, path.stem, read)
      splits[_split_of(int(match[1]) - 1)].append(record)
  return {split: sorted(splits[split], key=lambda r: r[:2]) for split in splits}


def _split_of(number: int) -> str:
  """Returns the split of a class, which is numbered from 0."""
  return ('train', 'val', 'train', 'test')[number % 4]


SPEC = records.DatasetSpec(
  name='cub',
  image_shape=(84, 84, 3),
  layout=LAYOUT,
  find_records=_find_records,
  mean=records.IMAGENET_MEAN,
  std=records.IMAGENET_STD,
  num_classes={'train': 100, 'val': 50, 'test': 50},
)
