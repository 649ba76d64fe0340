"""CUB-200-2011: 200 species of birds, about 59 images each, made 84 x 84.

Wah et al., "The Caltech-UCSD Birds-200-2011 dataset", 2011. Without CSV files
it is split as in Chen et al., "A closer look at few-shot classification",
2019: of the classes numbered from 0, the even ones are to train on, numbers
1, 5, 9, ... to validate, and 3, 7, 11, ... to test.

Whole images are stretched to the square. Normalisation is by the statistics of
ImageNet, as in PyTorch-MAML.
"""

import re
from pathlib import Path

from maml_jax.data import csv_splits, records

LAYOUT = """\
images/ and fs-splits/{train,val,test}.csv (filename,label)
CUB_200_2011/images/001.Black_footed_Albatross/, ..., without CSV files
caltech_birds2011/0.2.0/ of tfds build caltech_birds2011 \
--file_format=array_record"""

NUMBERED = re.compile(r'(\d{3})\.')  # class folders count from 001


def _source(directory: Path) -> records.Splits:
  if rows := csv_splits.find_csv_splits(SPEC.name, directory):
    return csv_splits.records_from_rows(SPEC.name, directory, rows)
  splits = {split: [] for split in records.SPLITS}
  for record in records.tfds_records(SPEC.name, directory, 'caltech_birds2011'):
    number = int(record.label)  # TFDS counts from 0
    label = f'{number + 1:03d}'
    splits[_split(number)].append(record._replace(label=label))
  if any(splits.values()):
    return splits
  for path, read in records.scan_images(directory).items():
    match = NUMBERED.match(path.parent.name)
    if match and 'segmentations' not in path.parts:
      record = records.Record(path.parent.name, path.stem, read)
      splits[_split(int(match[1]) - 1)].append(record)
  return {split: sorted(splits[split], key=lambda r: r[:2]) for split in splits}


def _split(number: int) -> str:
  return ('train', 'val', 'train', 'test')[number % 4]


SPEC = records.DatasetSpec(
  name='cub',
  image_shape=(84, 84, 3),
  layout=LAYOUT,
  source=_source,
  mean=records.IMAGENET_MEAN,
  std=records.IMAGENET_STD,
  num_classes={'train': 100, 'val': 50, 'test': 50},
)
