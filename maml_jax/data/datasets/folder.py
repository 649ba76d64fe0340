"""Your own images: a folder of class folders, resized to 84 x 84.

Either you say which classes are to train, to validate and to test on, by a
folder for each of the three; or you give class folders only, and they are
dealt out by a hash of their names: about 64, 16 and 20 % of the classes,
always the same.

    python main.py --config=configs/folder.py --config.data.root=DIR

Here `data.root` is the directory of the images. They are prepared on first use,
or beforehand by `python -m maml_jax.data prepare folder --from DIR`, which is
also to be called again when they have changed. Nothing is written to DIR: what
is prepared is kept among the other data sets, by a name that follows from the
path. Normalisation, if asked for, is by the statistics of ImageNet.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from maml_jax.data import records
from maml_jax.utils.errors import UserError

LAYOUT = """\
train/CLASS/*.jpg, val/CLASS/*.jpg, test/CLASS/*.jpg, or other formats
CLASS/*.jpg, three classes or more, to be split by a hash of their names
zip archives of either, as they are"""

VAL, TEST = 0.16, 0.20  # parts of the classes


def _source(directory: Path) -> records.Splits:
  images = records.scan_images(directory)
  splits = {split: [] for split in records.SPLITS}
  in_splits = any(
    path.parts[0] in splits and len(path.parts) > 2 for path in images
  )
  if in_splits:
    _check_splits(directory, images)
    start = 1
  else:
    start = 0
    split_of = _deal({path.parts[0] for path in images if len(path.parts) > 1})
  for path, read in images.items():
    if len(path.parts) > start + 1:  # is in a class folder
      label = path.parts[start]
      split = path.parts[0] if in_splits else split_of[label]
      key = '/'.join(path.parts[start + 1 :])
      splits[split].append(records.Record(label, key, read))
  return {
    split: sorted(records, key=lambda record: record.label)
    for split, records in splits.items()
  }


def _check_splits(directory: Path, images: Iterable[PurePosixPath]) -> None:
  folders = {path.parts[0] for path in images if len(path.parts) > 1}
  others = sorted(folders.difference(records.SPLITS))
  if others:
    raise UserError(
      f'folder: {directory} holds folders of images beside train, val, test:'
      f' {", ".join(others)}'
    )


def _deal(labels: set[str]) -> dict[str, str]:
  """Split of each class."""
  if 0 < len(labels) < len(records.SPLITS):
    raise UserError(
      f'folder: {len(labels)} classes cannot make three splits that share'
      f' none: {", ".join(sorted(labels))}'
    )
  dealt = sorted(
    labels, key=lambda label: hashlib.sha256(label.encode()).digest()
  )
  num_test = max(1, round(TEST * len(dealt)))
  num_val = max(1, round(VAL * len(dealt)))
  split = dict.fromkeys(dealt, 'train')
  split |= dict.fromkeys(dealt[: num_val + num_test], 'val')
  return split | dict.fromkeys(dealt[:num_test], 'test')


SPEC = records.DatasetSpec(
  name='folder',
  image_shape=(84, 84, 3),
  layout=LAYOUT,
  source=_source,
  mean=records.IMAGENET_MEAN,
  std=records.IMAGENET_STD,
  user_provided=True,
  version='1.2.0',  # transparent is white; 16 bits are not cut at 8
)
