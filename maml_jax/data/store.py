"""Prepared data sets on disk: TFDS files, and arrays decoded from them.

    data_dir/NAME/VERSION/                   array_record files of TFDS
    data_dir/NAME/VERSION/arrays/SPLIT/      image.npy, classes.json, digests

The TFDS files contain the original encoded images and are written once. Runs
memory-map the arrays and therefore need neither TFDS nor an image decoder.
Both are written to a hidden directory and renamed when they are complete. The
hidden directories of processes that were killed are removed by the next write;
file locks tell which ones are still in use.

The SHA-256 digest of an array file is verified when its modification time has
changed since the last verification, for example after a copy.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np

from maml_jax.data import images, records
from maml_jax.data.duplicates import check_shared_images, image_digest
from maml_jax.types import Dataset
from maml_jax.utils.console import print_warning
from maml_jax.utils.errors import UserError
from maml_jax.utils.files import fsync, preallocate, replace_file
from maml_jax.utils.progress import track

__all__ = [
  'DIGESTS_FILE',
  'arrays_dir',
  'atomic_directory',
  'decode_image',
  'read_arrays',
  'read_classes',
  'write_arrays',
  'write_dataset',
]

IMAGES_PER_FILE = 10_000  # per array_record file
ARRAY_FILES = ('image.npy', 'classes.json')
DIGESTS_FILE = 'digests.json'

T = TypeVar('T')


def write_dataset(
  root: Path, spec: records.DatasetSpec, splits: records.Splits
) -> None:
  """Writes the TFDS files and the arrays to `root`, replacing existing ones.

  Raises:
    UserError: an image cannot be read (or all images of a class, if the number
      of images per class is not fixed), or classes share most of their images.
    OSError: the directory cannot be written.
  """
  digests = {}
  with atomic_directory(root) as temporary:
    _write_tfds_files(temporary, spec, splits)
    for split in records.SPLITS:
      digests |= write_arrays(temporary, spec, split)
    check_shared_images(spec.name, digests)


def read_arrays(
  root: Path, spec: records.DatasetSpec, split: str
) -> Dataset | None:
  """Memory-maps one split; returns None if arrays are missing or damaged."""
  folder = arrays_dir(root, split)
  try:
    _verify_digests(folder)
    images = np.load(folder / 'image.npy', mmap_mode='r', allow_pickle=False)
    sizes = list(read_classes(root, split).values())
    size = np.array(sizes, np.int32)
    shape = (sum(sizes), *spec.image_shape)
  except Exception:  # damaged files can raise nearly anything
    return None
  if images.dtype != np.uint8 or images.shape != shape or size.min() < 1:
    return None
  # Images are sorted by class; padding repeats the last image of a class.
  column = np.minimum(np.arange(size.max()), size[:, None] - 1)
  index = (size.cumsum() - size)[:, None] + column
  return Dataset(images, index.astype(np.int32), size)


def read_classes(root: Path, split: str) -> dict[str, int]:
  """Returns the number of images by class name, in the order of classes."""
  return json.loads(
    (arrays_dir(root, split) / 'classes.json').read_text('utf-8')
  )


def write_arrays(
  root: Path, spec: records.DatasetSpec, split: str
) -> dict[str, array]:
  """Decodes one split of the TFDS files in `root` and writes its arrays.

  Returns:
    The digests of the decoded images by class, without rotations.

  Raises:
    UserError: an image cannot be decoded; or all images of a class, if the
      number of images per class is not fixed.
    OSError: the directory cannot be written.
  """
  import tensorflow_datasets as tfds  # saves start-up time

  builder = records.load_tfds_builder(root)
  examples = builder.as_data_source(
    split, decoders={'image': tfds.decode.SkipDecoding()}
  )
  class_name = builder.info.features['label'].int2str
  rotations = range(spec.rotations)  # in units of 90 degrees
  digests = {}
  with atomic_directory(arrays_dir(root, split)) as temporary:
    path = temporary / 'image.npy'
    shape = (len(rotations) * len(examples), *spec.image_shape)
    stack = np.lib.format.open_memmap(path, 'w+', np.uint8, shape)
    with open(path, 'rb+') as file:
      preallocate(file.fileno(), os.fstat(file.fileno()).st_size)
    rotated = stack.reshape(len(rotations), len(examples), *spec.image_shape)
    num_read = 0
    bar = track(examples, 'images', f'{spec.name}: decode {split}')
    for label, pixels in _decoded(bar, class_name, spec):
      digests.setdefault(label, array('Q')).append(image_digest(pixels))
      for k in rotations:
        rotated[k, num_read] = np.rot90(pixels, k)
      num_read += 1
    stack.flush()
    if num_read < len(examples):
      kept = rotated[:, :num_read].reshape(-1, *spec.image_shape)
      np.save(temporary / 'kept.npy', kept)
      os.replace(temporary / 'kept.npy', path)
    classes = {
      f'{label}, {90 * k} degrees' if k else label: len(found)
      for k in rotations
      for label, found in digests.items()
    }
    text = json.dumps(classes, indent=0, ensure_ascii=False)
    (temporary / 'classes.json').write_text(text, 'utf-8')
    _write_digests(
      temporary, {name: _file_digest(temporary / name) for name in ARRAY_FILES}
    )
  return digests


def _decoded(
  examples: Iterable[dict], class_name: Callable, spec: records.DatasetSpec
) -> Iterator[tuple[str, np.ndarray]]:
  """Yields the class and the pixels of each image that can be decoded."""
  reader = _ImageReader(spec)
  for record in examples:
    label, key = class_name(record['label']), record['key'].decode()
    decode = functools.partial(decode_image, record['image'], spec)
    pixels = reader.read(label, key, decode)
    if pixels is not None:
      yield label, pixels
  reader.check_classes()


def decode_image(encoded: bytes, spec: records.DatasetSpec) -> np.ndarray:
  """Decodes an image to uint8 [H, W, C] and resizes it to `spec.image_shape`.

  Applies the EXIF orientation if it is valid. Transparent pixels become white.
  Oversized images are rejected before they are decompressed.

  Raises:
    Exception: the image cannot be decoded; the type depends on the decoder.
  """
  with images.open_image(encoded) as image:
    pixels = images.resize(image, spec)
  return 255 - pixels if spec.invert else pixels


def _write_tfds_files(
  root: Path, spec: records.DatasetSpec, splits: records.Splits
) -> None:
  """Writes the encoded images with TFDS to the empty directory `root`."""
  import tensorflow_datasets as tfds  # saves start-up time

  labels = [record.label for split in splits.values() for record in split]
  labels = list(dict.fromkeys(labels))
  channels = spec.image_shape[-1]

  identity = tfds.core.dataset_info.DatasetIdentity(
    name=spec.name,
    version=tfds.core.Version(spec.version),
    data_dir=root,
    module_name=__name__,
  )
  info = tfds.core.DatasetInfo(
    builder=identity,
    features=tfds.features.FeaturesDict(
      {
        'image': tfds.features.Image(shape=(None, None, channels)),
        'label': tfds.features.ClassLabel(names=labels),
        'key': tfds.features.Text(),
      }
    ),
    supervised_keys=('image', 'label'),
    disable_shuffling=True,
  )

  def examples(split):
    reader = _ImageReader(spec)
    bar = track(splits[split], 'images', f'{spec.name}: read {split}')
    for label, key, read in bar:
      encoded = reader.read(label, key, read)
      if encoded is not None:
        yield {'image': encoded, 'label': label, 'key': key}
    reader.check_classes()

  # A TFDS builder would keep all images of a split in memory to sort them, and
  # requires TensorFlow for more than 1 GB.
  writer = tfds.core.SequentialWriter(
    info, IMAGES_PER_FILE, file_format='array_record'
  )
  writer.initialize_splits(list(records.SPLITS))
  for split in records.SPLITS:
    writer.add_examples({split: examples(split)})
  writer.close_all()


class _ImageReader:
  """Reads images and skips unreadable ones with a warning.

  If the number of images per class is fixed, an unreadable image is an error.
  """

  def __init__(self, spec: records.DatasetSpec):
    self._spec = spec
    self._num_read = Counter()  # by class
    self._skipped: dict[str, str] = {}  # the last skipped image of a class

  def read(self, label: str, key: str, read: Callable[[], T]) -> T | None:
    """Returns `read()`, or None if the image is skipped.

    Raises:
      UserError: an image is unreadable that must not be skipped.
    """
    try:
      result = read()
    except Exception as error:  # broken files can raise nearly anything
      reason = images.describe_error(error)
      problem = f'image {key!r} of class {label!r}: {reason}'
      if self._spec.images_per_class:
        raise UserError(f'{self._spec.name}: cannot read {problem}') from error
      print_warning(f'{self._spec.name}: skipped {problem}')
      self._skipped[label] = problem
      return None
    self._num_read[label] += 1
    return result

  def check_classes(self) -> None:
    """Raises UserError if all images of a class were skipped."""
    for label, problem in self._skipped.items():
      if not self._num_read[label]:
        raise UserError(
          f'{self._spec.name}: class {label!r} has no readable image; cannot'
          f' read {problem}'
        )


def arrays_dir(root: Path, split: str) -> Path:
  """Returns the directory of the arrays of a split."""
  return root / 'arrays' / split


def _verify_digests(folder: Path) -> None:
  """Raises ValueError if the content of a file has changed.

  Files whose modification time is unchanged are not read. Arrays written by
  older versions have no digests and are not verified.
  """
  if not (folder / DIGESTS_FILE).exists():
    return
  known = json.loads((folder / DIGESTS_FILE).read_text('utf-8'))
  new = dict(known)
  for name in ARRAY_FILES:
    digest, mtime = known[name]
    if (folder / name).stat().st_mtime_ns != mtime:
      new[name] = _file_digest(folder / name)
      if new[name][0] != digest:
        raise ValueError(f'the content of {name} has changed')
  if new != known:
    with contextlib.suppress(OSError):  # the directory may be read-only
      _write_digests(folder, new)


def _file_digest(path: Path) -> list:
  """Returns the SHA-256 digest of a file and its modification time in ns."""
  with open(path, 'rb') as file:
    mtime = os.fstat(file.fileno()).st_mtime_ns
    return [hashlib.file_digest(file, 'sha256').hexdigest(), mtime]


def _write_digests(folder: Path, digests: dict[str, list]) -> None:
  with replace_file(folder / DIGESTS_FILE) as new:
    new.write_text(json.dumps(digests), 'utf-8')


@contextlib.contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
  """Yields a new directory that replaces `target` if the block succeeds.

  Until then `target` is unchanged. If several processes write the same target,
  one of the complete results is kept.

  Raises:
    OSError: the directory cannot be written.
  """
  target.parent.mkdir(parents=True, exist_ok=True)
  prefix = f'.{target.name}-'
  with contextlib.ExitStack() as stack:
    with _lock(target.parent):
      _remove_abandoned(target.parent, prefix)
      temporary = stack.enter_context(
        tempfile.TemporaryDirectory(
          prefix=prefix, dir=target.parent, ignore_cleanup_errors=True
        )
      )
      stack.enter_context(_lock(Path(temporary)))
    new = Path(temporary, 'new')
    new.mkdir()
    yield new
    for path in new.rglob('*'):
      fsync(path)
    with contextlib.suppress(FileNotFoundError):
      os.rename(target, Path(temporary, 'old'))
    try:
      os.rename(new, target)
    except OSError:  # another process has just written the same target
      if not target.exists():
        raise


def _remove_abandoned(parent: Path, prefix: str) -> None:
  """Removes the temporary directories of processes that no longer exist."""
  for folder in parent.glob(f'{prefix}*'):
    with contextlib.suppress(OSError), _lock(folder, wait=False):
      shutil.rmtree(folder)


@contextlib.contextmanager
def _lock(folder: Path, wait: bool = True) -> Iterator[None]:
  """Locks a directory; the kernel releases the lock when the process ends.

  On file systems without locks, proceeds without a lock if `wait` is true.

  Raises:
    OSError: `wait` is false and the lock is not available.
  """
  handle = os.open(folder, os.O_RDONLY)
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
      if not wait:
        raise
    yield
  finally:
    os.close(handle)
