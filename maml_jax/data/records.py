"""What a data set is made of: a `Spec`, and `Record`s read from files.

A new data set is one module with a `Spec` whose `source` turns a directory
into records. Folders and zip archives look the same to it through `scan`, so
most sources only say which file belongs to which class and split.
"""

import dataclasses
import functools
import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from maml_jax.utils.errors import UserError, printable

SPLITS = ('train', 'val', 'test')
IMAGE_SUFFIXES = frozenset('.bmp .gif .jpeg .jpg .png .tif .tiff .webp'.split())

MAX_BYTES = 2**28  # of one encoded image; what is larger is none

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Record(NamedTuple):
  """One image that has not been read yet."""

  label: str  # name of the class
  key: str  # orders the images of a class; unique within it
  read: Callable[[], bytes]  # an encoded image: PNG, JPEG, WebP, ...


Splits = Mapping[str, list[Record]]
Images = Mapping[PurePosixPath, Callable[[], bytes]]


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
  """The facts about one data set.

  Attributes:
    name: what users call it.
    image_shape: (H, W, C) of the decoded images, uint8 0..255.
    layout: what the directory given to `prepare` may hold, for people.
    source: lists the records of each split, given that directory. It reads no
      image. `None` as directory asks for a data set that needs no files.
    mean: channel means for normalising, of values in [0, 1]; None: do not.
    std: channel standard deviations, likewise.
    num_classes: classes per split, verified; None if it depends on the files.
    images_per_class: verified likewise.
    generated: made on first use, from no files at all.
    user_provided: every directory that it is prepared from gives another data set,
      kept apart from the others and made on first use.
    invert: images are drawn dark on light; they are kept light on dark.
    light_on_dark: images are ink, light on black; those from elsewhere are made
      so, see `images.to_array`.
    rotations: 4 to add each class turned by 90, 180 and 270 degrees as new
      classes, else 1.
    version: to be raised when the same files would give other arrays.
  """

  name: str
  image_shape: tuple[int, int, int]
  layout: str
  source: Callable[[Path | None], Splits]
  mean: tuple[float, ...] | None = None
  std: tuple[float, ...] | None = None
  num_classes: Mapping[str, int] | None = None
  images_per_class: int | None = None
  generated: bool = False
  user_provided: bool = False
  invert: bool = False
  light_on_dark: bool = False
  rotations: int = 1
  version: str = '1.0.0'


def scan_images(path: Path) -> Images:
  """Lists the images under a folder, those inside its zip archives included.

  Args:
    path: a folder, searched to any depth, or one zip archive.

  Returns:
    A function that reads the image, by path; in sorted order. The path is
    relative to the folder, or to the root of the archive. Nothing is
    extracted.

  Raises:
    UserError: an archive is broken, or an entry points outside of it.
  """
  found = {}
  for file in sorted(_walk(path)):
    if file.suffix.lower() == '.zip':
      for entry, read in _entries(file):
        found.setdefault(entry, read)
    else:
      name = PurePosixPath(file.relative_to(path))
      found.setdefault(name, functools.partial(_read_file, file))
  return {
    name: found[name]
    for name in sorted(found)
    if name.suffix.lower() in IMAGE_SUFFIXES and not _hidden(name)
  }


def _walk(path: Path) -> Iterable[Path]:
  """The files under a folder; links are followed, but not in circles."""
  if path.is_file():
    yield path
  seen = set()
  for folder, folders, files in os.walk(path, followlinks=True):
    yield from (Path(folder, file) for file in files)
    real = {name: os.path.realpath(Path(folder, name)) for name in folders}
    folders[:] = [name for name in folders if real[name] not in seen]
    seen.update(real.values())


def _read_file(path: Path) -> bytes:
  _check_size(path.stat().st_size)
  return path.read_bytes()


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
  _check_size(entry.file_size)  # no more is unpacked
  return archive.read(entry)


def _check_size(size: int) -> None:
  if size > MAX_BYTES:
    raise UserError(f'it is of {size} bytes; at most {MAX_BYTES} are read')


def _entries(
  archive: Path,
) -> Iterable[tuple[PurePosixPath, Callable[[], bytes]]]:
  try:
    file = zipfile.ZipFile(archive)
  except Exception as error:  # Broken files can raise nearly anything.
    raise UserError(f'cannot read the archive {archive}: {error}') from error
  for entry in file.infolist():
    path = PurePosixPath(entry.filename.replace('\\', '/'))
    drive = str(path)[1:2] == ':'
    if path.is_absolute() or drive or '..' in path.parts:
      raise UserError(
        f'refused: {archive} holds an entry that points outside of it:'
        f' {entry.filename!r}'
      )
    if not entry.is_dir():
      yield path, functools.partial(_read_entry, file, entry)


def _hidden(path: PurePosixPath) -> bool:
  return any(part.startswith(('.', '__MACOSX')) for part in path.parts)


def tfds_records(name: str, directory: Path, tfds_name: str) -> list[Record]:
  """Lists all the images of a data set as TFDS prepares it, class by class.

  Args:
    name: the data set that is made of it.
    directory: what holds NAME/VERSION/, or is one of these two directories.
    tfds_name: its name in TFDS; it has features 'image' and 'label'.

  Raises:
    UserError: the files are broken, or of a format without random access.
  """
  for pattern in (f'{tfds_name}/*/', '*/', ''):
    for info in sorted(directory.glob(f'{pattern}dataset_info.json')):
      folder = info.parent
      try:
        if json.loads(info.read_text('utf-8')).get('name') == tfds_name:
          return _read_tfds(name, folder)
      except UserError:
        raise
      except Exception as error:  # Broken files can raise nearly anything.
        raise UserError(f'{name}: cannot read {folder}: {error}') from error
  return []


def tfds_builder(folder: Path):
  """The builder of prepared TFDS files, which say what it is to be made of.

  Raises:
    UserError: they ask for features that are none of TFDS, which would import
      any module by name.
  """
  import tensorflow_datasets as tfds

  pending = [json.loads((folder / 'features.json').read_text('utf-8'))]
  while pending:
    node = pending.pop()
    pending += node.values() if isinstance(node, dict) else ()
    pending += node if isinstance(node, list) else ()
    for key in ('pythonClassName', 'type'):
      name = node.get(key, '') if isinstance(node, dict) else ''
      if isinstance(name, str) and '.' in name:
        if not name.startswith('tensorflow_datasets.core.features.'):
          raise UserError(f'refused: {folder} asks for {printable(name)}')
  return tfds.builder_from_directory(folder)


def _read_tfds(name: str, folder: Path) -> list[Record]:
  import tensorflow_datasets as tfds

  builder = tfds_builder(folder)
  kind = builder.info.file_format.value
  if kind != 'array_record':
    raise UserError(
      f'{name}: {folder} holds {kind} files, which have no random access; make'
      f' others with: tfds build {builder.name} --file_format=array_record'
    )
  features = builder.info.features
  encoded = {
    key: tfds.decode.SkipDecoding()
    for key, feature in features.items()
    if isinstance(feature, tfds.features.Image)
  }
  records = []
  for split in sorted(builder.info.splits):
    examples = builder.as_data_source(split, decoders=encoded)
    for i, example in enumerate(examples):
      label = features['label'].int2str(example['label'])
      read = functools.partial(_tfds_image, examples, i)
      records.append(Record(label, f'{split} {i:06d}', read))
  return sorted(records, key=lambda record: record.label)


def _tfds_image(examples: Sequence, i: int) -> bytes:
  return examples[i]['image']


def encode_png(image: np.ndarray) -> bytes:
  """Encodes uint8 [H, W, 3] without loss."""
  from PIL import Image

  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'png', compress_level=1)
  return buffer.getvalue()


def verify_counts(spec: DatasetSpec, splits: Splits) -> None:
  """Raises `UserError` unless `splits` has the counts that `spec` promises."""
  sizes = {split: Counter(r.label for r in splits[split]) for split in SPLITS}
  for split in SPLITS:
    expected = spec.num_classes and spec.num_classes[split]
    if expected and len(sizes[split]) != expected:
      raise UserError(
        f'{spec.name}: split {split!r} has {len(sizes[split])} classes,'
        f' expected {expected}'
      )
    if not sizes[split]:
      raise UserError(f'{spec.name}: split {split!r} has no images')
    for label, size in sizes[split].items():
      if spec.images_per_class and size != spec.images_per_class:
        raise UserError(
          f'{spec.name}: class {label!r} of split {split!r} has {size} images,'
          f' expected {spec.images_per_class}'
        )
  for label, splits_of in Counter(chain(*sizes.values())).items():
    if splits_of > 1:
      raise UserError(f'{spec.name}: class {label!r} is in several splits')
