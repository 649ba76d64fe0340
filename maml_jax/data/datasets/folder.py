"""User-provided images: a folder of class folders, resized to 84 x 84.

The directory either has a folder for each of the splits train, val and test,
or it has class folders only. In the latter case, classes are assigned to splits
by a hash of their names: about 64 % train, 16 % val, 20 % test, always the
same. Either may be in a wrapper folder. Unreadable images are skipped with a
warning.

    python main.py --config=configs/folder.py --config.data.root=DIR

Here `data.root` is the directory of the images. They are prepared on first use,
or by `python -m maml_jax.data prepare folder --from DIR`, which must be called
again when the images have changed. Nothing is written to DIR: the prepared
arrays are stored with those of the other data sets, under a name that depends
on the path of DIR. The normalization statistics are those of ImageNet.
"""

import hashlib
from pathlib import Path

from maml_jax.data import records
from maml_jax.data.folder_layout import find_layout, split_of_folder
from maml_jax.utils.console import print_warning
from maml_jax.utils.errors import UserError

__all__ = ['LAYOUT', 'SPEC']

LAYOUT = f"""\
{records.SPLIT_FOLDERS}
class folders only, three or more, split by a hash of their names
zip archives of either, not extracted"""

VAL, TEST = 0.16, 0.20  # fractions of the classes


def _find_records(directory: Path) -> records.Splits:
  images = records.scan_images(directory)
  if splits := records.find_split_folders(SPEC.name, images):
    return splits
  start = len(find_layout(images).root.parts)  # wrapper folders
  found = [
    records.Record(
      path.parts[start], '/'.join(path.parts[start + 1 :]), images[path]
    )
    for path in images
    if len(path.parts) > start + 1  # the image is in a class folder
  ]
  labels = {record.label for record in found}
  split_of = _assign_splits(labels)
  if labels and all(map(split_of_folder, labels)):
    print_warning(
      f'folder: the classes are named like splits: {", ".join(sorted(labels))}'
    )
  splits = {split: [] for split in records.SPLITS}
  for record in sorted(found, key=lambda record: record.label):
    splits[split_of[record.label]].append(record)
  return splits


def _assign_splits(labels: set[str]) -> dict[str, str]:
  """Returns the split of each class, chosen by a hash of its name."""
  if 0 < len(labels) < len(records.SPLITS):
    raise UserError(
      f'folder: at least 3 classes are needed for three disjoint splits, found'
      f' {len(labels)}: {", ".join(sorted(labels))}'
    )
  shuffled = sorted(
    labels, key=lambda label: hashlib.sha256(label.encode()).digest()
  )
  num_test = max(1, round(TEST * len(shuffled)))
  num_val = max(1, round(VAL * len(shuffled)))
  split_of = dict.fromkeys(shuffled, 'train')
  split_of |= dict.fromkeys(shuffled[: num_val + num_test], 'val')
  return split_of | dict.fromkeys(shuffled[:num_test], 'test')


SPEC = records.DatasetSpec(
  name='folder',
  image_shape=(84, 84, 3),
  layout=LAYOUT,
  find_records=_find_records,
  mean=records.IMAGENET_MEAN,
  std=records.IMAGENET_STD,
  user_provided=True,
  version='1.3.0',  # folders such as 'Train' and 'valid' are splits
)
