"""mini-ImageNet: 100 classes of 600 images, 84 x 84.

Vinyals et al., "Matching networks for one shot learning", 2016, in the split
of Ravi & Larochelle, "Optimization as a model for few-shot learning", 2017.
"""

import csv
from pathlib import Path, PurePosixPath

from maml_jax.data import source
from maml_jax.errors import UserError


def _source(directory: Path) -> source.Splits:
  images = source.scan(directory)
  by_stem = {}
  for path, read in images.items():
    by_stem.setdefault(path.stem, read)
  splits = {}
  for split in source.SPLITS:
    with open(directory / f'{split}.csv', newline='', encoding='utf-8') as file:
      rows = [
        (row['label'], PurePosixPath(row['filename']).stem)
        for row in csv.DictReader(file)
      ]
    missing = [stem for _, stem in rows if stem not in by_stem]
    if missing:
      raise UserError(
        f'mini_imagenet: {len(missing)} of the {len(rows)} images listed in'
        f' {directory / f"{split}.csv"} are not under {directory}, such as'
        f' {missing[0]!r}'
      )
    splits[split] = [
      source.Record(label, stem, by_stem[stem]) for label, stem in sorted(rows)
    ]
  return splits


SPEC = source.Spec(
  name='mini_imagenet',
  image_shape=(84, 84, 3),
  layout='',
  source=_source,
  mean=(0.471, 0.450, 0.403),
  std=(0.278, 0.268, 0.284),
  num_classes={'train': 64, 'val': 16, 'test': 20},
  images_per_class=600,
)
