"""tiered-ImageNet: 608 classes, 779,165 images, 84 x 84.

Ren et al., "Meta-learning for semi-supervised few-shot classification", 2018.
Classes of different splits lie far apart in the hierarchy of ImageNet.

The images are never all in memory: they are read one at a time, from wherever
they lie in their file. The .npz files hold blue before red, as OpenCV does.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from maml_jax.data import npz, records, safe_pickle
from maml_jax.utils.errors import UserError

LAYOUT = """\
{train,val,test}_images.npz and {train,val,test}_labels.pkl
{train,val,test}_images_png.pkl and {train,val,test}_labels.pkl"""


def _source(directory: Path) -> records.Splits:
  return {split: _records(directory, split) for split in records.SPLITS}


def _records(directory: Path, split: str) -> list[records.Record]:
  arrays = directory / f'{split}_images.npz'
  encoded = directory / f'{split}_images_png.pkl'
  if arrays.exists():
    path, read, count = arrays, *_from_arrays(arrays)
  elif encoded.exists():
    path, read, count = encoded, *_from_encoded(encoded)
  else:
    return []
  label, names = _labels(directory / f'{split}_labels.pkl')
  if len(label) != count:
    raise UserError(
      f'tiered_imagenet: {path} holds {count} images, but'
      f' {split}_labels.pkl {len(label)} labels'
    )
  return [
    records.Record(
      f'{names[label[i]]}, {split} class {label[i]}'
      if 0 <= label[i] < len(names)
      else f'{split} class {label[i]}',
      f'{i:06d}',
      functools.partial(read, int(i)),
    )
    for i in np.argsort(label, kind='stable')
  ]


def _from_arrays(path: Path) -> tuple[Callable[[int], bytes], int]:
  rows = npz.Rows(path, 'images')
  if rows.dtype != np.uint8 or rows.shape[1:] != SPEC.image_shape:
    raise UserError(
      f'tiered_imagenet: {path} holds images {rows.dtype}{list(rows.shape)},'
      ' expected uint8[N, 84, 84, 3]'
    )
  return lambda i: records.encode_png(rows[i][..., ::-1]), len(rows)


def _from_encoded(path: Path) -> tuple[Callable[[int], bytes], int]:
  blobs = safe_pickle.find_byte_ranges(path, b'\x89PNG')
  return lambda i: blobs[i].read(), len(blobs)


def _labels(path: Path) -> tuple[np.ndarray, list[str]]:
  """Label of each image, and names of labels if the file tells."""
  content = safe_pickle.load(path)
  for key in ('labels', 'label_specific'):
    if isinstance(content, dict) and key in content:
      label = np.asarray(content[key])
      if label.ndim == 1 and label.dtype.kind in 'iu':
        return label, list(content.get('label_specific_str', ()))
  raise UserError(
    f'tiered_imagenet: {path} should hold a dict with integers as labels or'
    ' label_specific'
  )


SPEC = records.DatasetSpec(
  name='tiered_imagenet',
  image_shape=(84, 84, 3),
  layout=LAYOUT,
  source=_source,
  mean=(0.478, 0.456, 0.410),
  std=(0.279, 0.274, 0.286),
  num_classes={'train': 351, 'val': 97, 'test': 160},
)
