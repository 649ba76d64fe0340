"""tiered-ImageNet: 608 classes, 779,165 images, 84 x 84.

Ren et al., "Meta-learning for semi-supervised few-shot classification", 2018.
Classes of different splits are far apart in the hierarchy of ImageNet.

Images are read one at a time, so that they need not fit in memory. The .npz
files contain BGR images, as OpenCV uses.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from maml_jax.data import npz, records, safe_pickle
from maml_jax.utils.errors import UserError

__all__ = ['LAYOUT', 'SPEC']

LAYOUT = f"""\
{{train,val,test}}_images.npz and {{train,val,test}}_labels.pkl
{{train,val,test}}_images_png.pkl and {{train,val,test}}_labels.pkl
{records.SPLIT_FOLDERS}"""


def _find_records(directory: Path) -> records.Splits:
  splits = {
    split: _find_split_records(directory, split) for split in records.SPLITS
  }
  if any(splits.values()):
    return splits
  images = records.scan_images(directory)
  return records.find_split_folders(SPEC.name, images)


def _find_split_records(directory: Path, split: str) -> list[records.Record]:
  npz_path = directory / f'{split}_images.npz'
  pickle_path = directory / f'{split}_images_png.pkl'
  if npz_path.exists():
    path, (read, count) = npz_path, _open_npz(npz_path)
  elif pickle_path.exists():
    path, (read, count) = pickle_path, _open_png_pickle(pickle_path)
  else:
    return []
  labels, names = _load_labels(directory / f'{split}_labels.pkl')
  if len(labels) != count:
    raise UserError(
      f'tiered_imagenet: {path} contains {count} images, but'
      f' {split}_labels.pkl contains {len(labels)} labels'
    )
  return [
    records.Record(
      f'{names[labels[i]]}, {split} class {labels[i]}'
      if 0 <= labels[i] < len(names)
      else f'{split} class {labels[i]}',
      f'{i:06d}',
      functools.partial(read, int(i)),
    )
    for i in np.argsort(labels, kind='stable')
  ]


def _open_npz(path: Path) -> tuple[Callable[[int], bytes], int]:
  """Returns a function that reads image i as PNG, and the number of images."""
  rows = npz.RowReader(path, 'images')
  if rows.dtype != np.uint8 or rows.shape[1:] != SPEC.image_shape:
    raise UserError(
      f'tiered_imagenet: {path}: expected images uint8[N, 84, 84, 3], got'
      f' {rows.dtype}{list(rows.shape)}'
    )
  return lambda i: records.encode_png(rows[i][..., ::-1]), len(rows)


def _open_png_pickle(path: Path) -> tuple[Callable[[int], bytes], int]:
  """Returns a function that reads image i as PNG, and the number of images."""
  images = safe_pickle.find_byte_ranges(path, b'\x89PNG')
  return lambda i: images[i].read(), len(images)


def _load_labels(path: Path) -> tuple[np.ndarray, list[str]]:
  """Returns the label of each image, and the class names if there are any."""
  content = safe_pickle.load(path)
  for key in ('labels', 'label_specific'):
    if isinstance(content, dict) and key in content:
      labels = np.asarray(content[key])
      if labels.ndim == 1 and labels.dtype.kind in 'iu':
        names = content.get('label_specific_str', ())
        return labels, list(map(safe_pickle.to_text, names))
  raise UserError(
    f"tiered_imagenet: {path}: expected a dict with integers under 'labels' or"
    " 'label_specific'"
  )


SPEC = records.DatasetSpec(
  name='tiered_imagenet',
  image_shape=(84, 84, 3),
  layout=LAYOUT,
  find_records=_find_records,
  mean=(0.478, 0.456, 0.410),
  std=(0.279, 0.274, 0.286),
  num_classes={'train': 351, 'val': 97, 'test': 160},
)
