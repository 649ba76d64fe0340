"""Verification that the classes of a data set do not share images."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

import numpy as np

from maml_jax.utils.console import print_warning
from maml_jax.utils.errors import UserError, printable

__all__ = ['check_shared_images', 'image_digest']

MAX_GROUPS = 5  # of classes, in messages
MAX_CLASSES = 10  # of a group, in messages


def image_digest(pixels: np.ndarray) -> int:
  """Returns a 64-bit digest of the pixels of an image."""
  digest = sha256(np.ascontiguousarray(pixels).data).digest()
  return int.from_bytes(digest[:8], 'little')


def check_shared_images(
  name: str, digests: Mapping[str, Sequence[int]]
) -> None:
  """Verifies that classes do not share images.

  Published data sets contain a few images in several classes, which print a
  warning. If most images of a class are also in other classes, the files were
  probably mixed up.

  Args:
    name: the name of the data set, for messages.
    digests: of the images, by class.

  Raises:
    UserError: more than half of the distinct images of a class, and more than
      one, are also in other classes.
  """
  labels = list(digests)
  classes = np.repeat(np.arange(len(labels)), list(map(len, digests.values())))
  values = np.concatenate([np.asarray(d, np.uint64) for d in digests.values()])
  order = np.lexsort((classes, values))
  values, classes = values[order], classes[order]
  is_new = np.ones(len(values), bool)  # not the same image and class as before
  is_new[1:] = (np.diff(values) != 0) | (np.diff(classes) != 0)
  values, classes = values[is_new], classes[is_new]
  starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
  stops = np.r_[starts[1:], len(values)]
  groups = [
    tuple(classes[starts[i] : stops[i]].tolist())
    for i in np.flatnonzero(stops - starts > 1)
  ]
  if not groups:
    return
  num_images = np.bincount(classes)
  num_shared = np.bincount(
    [c for group in groups for c in group], minlength=len(labels)
  )
  mostly_shared = set(
    np.flatnonzero((2 * num_shared > num_images) & (num_shared > 1))
  )
  if mostly_shared:
    groups = [group for group in groups if mostly_shared.intersection(group)]
    raise UserError(
      f'{name}: classes share most of their images:'
      f' {_describe(labels, groups)}; correct the source files'
    )
  print_warning(
    f'{name}: classes share a few images: {_describe(labels, groups)}'
  )


def _describe(labels: Sequence[str], groups: Iterable[tuple[int, ...]]) -> str:
  """Returns, for example, "2 images in 'cat' and 'dog'".

  Args:
    labels: the names of the classes.
    groups: the classes of each image that is in several classes.
  """
  counts = sorted(Counter(groups).items(), key=lambda item: (-item[1], item[0]))
  texts = []
  for group, count in counts[:MAX_GROUPS]:
    names = [repr(printable(labels[c])) for c in group[:MAX_CLASSES]]
    if len(group) > MAX_CLASSES:
      names.append(f'{len(group) - MAX_CLASSES} more')
    listed = ', '.join(names[:-1])
    texts.append(
      f'{count} {"image" if count == 1 else "images"} in {listed} and'
      f' {names[-1]}'
    )
  if len(counts) > MAX_GROUPS:
    rest = sum(count for _, count in counts[MAX_GROUPS:])
    texts.append(f'{rest} images in other classes')
  return '; '.join(texts)
