"""Prepared data sets on disk: TFDS files, and arrays decoded from them.

    data_dir/NAME/VERSION/                   array_record files of TFDS
    data_dir/NAME/VERSION/arrays/SPLIT/      image.npy, classes.json, digests

The TFDS files keep the images as they came; they are written once. The arrays
are what a run memory-maps: it needs neither TFDS nor an image decoder. Both
appear under their names only when complete; until then they are in a hidden
directory beside. What a process that was killed has left of one is removed by
the next that begins another there; the kernel tells which are in use.

Arrays have digests, which are compared when a file has another time than it had
when they last were: after a copy, a repair of the disk or a slip of the hand.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from maml_jax.data import images, records
from maml_jax.types import Dataset
from maml_jax.utils import console
from maml_jax.utils.errors import UserError
from maml_jax.utils.files import fsync, preallocate

IMAGES_PER_FILE = 10_000  # of TFDS
ARRAY_FILES = ('image.npy', 'classes.json')
DIGESTS_FILE = 'digests.json'


def write_dataset(
  root: Path, spec: records.DatasetSpec, splits: records.Splits
) -> None:
  """Prepares the TFDS files and the arrays under `root`, replacing others."""
  with _staged(root) as stage:
    _write_records(stage, spec, splits)
    for split in records.SPLITS:
      write_arrays(stage, spec, split)


def read_arrays(
  root: Path, spec: records.DatasetSpec, split: str
) -> Dataset | None:
  """Memory-maps one split; None if its arrays are missing or damaged."""
  folder = arrays_dir(root, split)
  try:
    _check_digests(folder)
    image = np.load(folder / 'image.npy', mmap_mode='r', allow_pickle=False)
    sizes = list(read_classes(root, split).values())
    size = np.array(sizes, np.int32)
    shape = (sum(sizes), *spec.image_shape)
  except Exception:  # Damaged files can raise nearly anything.
    return None
  if image.dtype != np.uint8 or image.shape != shape or size.min() < 1:
    return None
  # The images are in order of class. Padding repeats the last of a class.
  column = np.minimum(np.arange(size.max()), size[:, None] - 1)
  index = (size.cumsum() - size)[:, None] + column
  return Dataset(image, index.astype(np.int32), size)


def read_classes(root: Path, split: str) -> dict[str, int]:
  """Number of images by class name, in the order of the classes."""
  return json.loads(
    (arrays_dir(root, split) / 'classes.json').read_text('utf-8')
  )


def write_arrays(root: Path, spec: records.DatasetSpec, split: str) -> None:
  """Decodes one split of the TFDS files under `root` into arrays."""
  import tensorflow_datasets as tfds

  builder = records.tfds_builder(root)
  examples = builder.as_data_source(
    split, decoders={'image': tfds.decode.SkipDecoding()}
  )
  name = builder.info.features['label'].int2str
  turns = range(spec.rotations)
  sizes = Counter()
  with _staged(arrays_dir(root, split)) as stage:
    image = np.lib.format.open_memmap(
      stage / 'image.npy',
      mode='w+',
      dtype=np.uint8,
      shape=(len(turns) * len(examples), *spec.image_shape),
    )
    with open(stage / 'image.npy', 'rb+') as file:
      preallocate(file.fileno(), os.fstat(file.fileno()).st_size)
    bar = _progress(examples, f'{spec.name}: decode {split}')
    for i, record in enumerate(bar):
      label = name(record['label'])
      sizes[label] += 1
      with _naming(spec, label, record['key'].decode()):
        pixels = decode_image(record['image'], spec)
      for k in turns:
        image[k * len(examples) + i] = np.rot90(pixels, k)
    image.flush()
    classes = {
      f'{label}, {90 * k} degrees' if k else label: size
      for k in turns
      for label, size in sizes.items()
    }
    text = json.dumps(classes, indent=0, ensure_ascii=False)
    (stage / 'classes.json').write_text(text, 'utf-8')
    _write_digests(stage, {name: _digest(stage / name) for name in ARRAY_FILES})


def decode_image(encoded: bytes, spec: records.DatasetSpec) -> np.ndarray:
  """Decodes an image to uint8 [H, W, C], resized if it is of another size.

  It is turned as its EXIF data say, if they can be read; what is transparent
  becomes white. What would take gigabytes is refused before it is unpacked.
  """
  with images.open_image(encoded) as image:
    pixels = images.resize(image, spec)
  return 255 - pixels if spec.invert else pixels


def _write_records(
  root: Path, spec: records.DatasetSpec, splits: records.Splits
) -> None:
  """Writes the encoded images with TFDS, into the empty directory `root`."""
  import tensorflow_datasets as tfds

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
    bar = _progress(splits[split], f'{spec.name}: read {split}')
    for label, key, read in bar:
      with _naming(spec, label, key):
        encoded = read()
      yield {'image': encoded, 'label': label, 'key': key}

  # A TFDS builder would gather all images of a split in memory to order them,
  # and needs TensorFlow beyond 1 GB.
  writer = tfds.core.SequentialWriter(
    info, IMAGES_PER_FILE, file_format='array_record'
  )
  writer.initialize_splits(list(records.SPLITS))
  for split in records.SPLITS:
    writer.add_examples({split: examples(split)})
  writer.close_all()


def _progress(records: Sequence, what: str) -> Iterator:
  """Iterates with a progress bar, on a terminal only."""
  from tqdm import tqdm

  off = console.is_quiet() or None  # None: unless on a terminal
  return tqdm(records, what, unit=' images', disable=off, leave=False)


@contextlib.contextmanager
def _naming(spec: records.DatasetSpec, label: str, key: str) -> Iterator[None]:
  """Says which image it was that could not be read."""
  try:
    yield
  except Exception as error:  # Broken files can raise nearly anything.
    raise UserError(
      f'{spec.name}: cannot read image {key!r} of class {label!r}: {error}'
    ) from error


def arrays_dir(root: Path, split: str) -> Path:
  """The directory of the arrays of a split."""
  return root / 'arrays' / split


def _check_digests(folder: Path) -> None:
  """Raises ValueError if a file is not as it was written.

  One that has the time that it had is not read. Arrays of an older version have
  no digests.
  """
  if not (folder / DIGESTS_FILE).exists():
    return
  known = json.loads((folder / DIGESTS_FILE).read_text('utf-8'))
  new = dict(known)
  for name in ARRAY_FILES:
    digest, time = known[name]
    if (folder / name).stat().st_mtime_ns != time:
      new[name] = _digest(folder / name)
      if new[name][0] != digest:
        raise ValueError(f'{name} is not as it was written')
  if new != known:
    with contextlib.suppress(OSError):  # It may be read-only.
      _write_digests(folder, new)


def _digest(path: Path) -> list:
  """The digest of a file, and its time."""
  with open(path, 'rb') as file:
    time = os.fstat(file.fileno()).st_mtime_ns
    return [hashlib.file_digest(file, 'sha256').hexdigest(), time]


def _write_digests(folder: Path, digests: dict[str, list]) -> None:
  new = folder / f'{DIGESTS_FILE}.{os.getpid()}'
  new.write_text(json.dumps(digests), 'utf-8')
  os.replace(new, folder / DIGESTS_FILE)


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
  """Yields a new directory that takes the place of `target` on success."""
  target.parent.mkdir(parents=True, exist_ok=True)
  prefix = f'.{target.name}-'
  with contextlib.ExitStack() as stack:
    with _lock(target.parent):
      _remove_stale(target.parent, prefix)
      temporary = stack.enter_context(
        tempfile.TemporaryDirectory(
          prefix=prefix, dir=target.parent, ignore_cleanup_errors=True
        )
      )
      stack.enter_context(_lock(Path(temporary)))
    stage = Path(temporary, 'new')
    stage.mkdir()
    yield stage
    for path in stage.rglob('*'):
      fsync(path)
    with contextlib.suppress(FileNotFoundError):
      os.rename(target, Path(temporary, 'old'))
    try:
      os.rename(stage, target)
    except OSError:  # Another process has put the same there just now.
      if not target.exists():
        raise


def _remove_stale(parent: Path, prefix: str) -> None:
  """Removes the hidden directories of processes that are no more."""
  for folder in parent.glob(f'{prefix}*'):
    with contextlib.suppress(OSError), _lock(folder, wait=False):
      shutil.rmtree(folder)


@contextlib.contextmanager
def _lock(folder: Path, wait: bool = True) -> Iterator[None]:
  """Holds a directory; the kernel lets go of it however the process ends.

  Raises:
    OSError: without `wait`, if another holds it or one cannot tell.
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
