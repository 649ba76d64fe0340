"""Specifications of data sets, and records of images read from their files.

A new data set is one module with a `DatasetSpec`, whose `find_records` lists
the images in a directory as `Record`s. `scan_images` treats folders and zip
archives alike, so that most data sets only have to assign a class and a split
to each file.
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
from typing import Any, NamedTuple

import numpy as np

from maml_jax.data.file_kinds import require_data
from maml_jax.data.folder_layout import find_layout, is_junk
from maml_jax.utils.errors import UserError, printable

__all__ = [
  'IMAGE_SUFFIXES',
  'IMAGENET_MEAN',
  'IMAGENET_STD',
  'SPLITS',
  'SPLIT_FOLDERS',
  'DatasetSpec',
  'Images',
  'Record',
  'Splits',
  'encode_png',
  'find_split_files',
  'find_split_folders',
  'list_tfds_records',
  'load_tfds_builder',
  'scan_images',
  'verify_counts',
]

SPLITS = ('train', 'val', 'test')
IMAGE_SUFFIXES = frozenset('.bmp .gif .jpeg .jpg .png .tif .tiff .webp'.split())

# The layout that `find_split_folders` reads.
SPLIT_FOLDERS = """\
class folders by split: train/CLASS/*.jpg, val/CLASS/*.jpg, test/CLASS/*.jpg, \
or other formats; also in zip archives"""

MAX_BYTES = 2**28  # per encoded image
TFDS_FEATURES = 'tensorflow_datasets.core.features.'  # safe to import

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Record(NamedTuple):
  """One image that has not been read yet.

  Attributes:
    label: the class name.
    key: orders the images of a class; unique within the class.
    read: returns the encoded image: PNG, JPEG, WebP, ...
  """

  label: str
  key: str
  read: Callable[[], bytes]


Splits = Mapping[str, list[Record]]
Images = Mapping[PurePosixPath, Callable[[], bytes]]


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
  """The specification of one data set.

  Attributes:
    name: the name of the data set in configs and on the command line.
    image_shape: (H, W, C) of the decoded images, uint8 0..255.
    layout: the accepted contents of the source directory, one per line, for
      help texts.
    find_records: lists the records of each split, given the source directory
      (None for a generated data set), without reading images.
    mean: channel means of pixel values in 0..1, for normalization; None
      disables it.
    std: channel standard deviations of pixel values in 0..1.
    num_classes: expected number of classes by split; None if it depends on the
      files.
    images_per_class: expected number of images per class; None if it varies.
    generated: the data set needs no source files and is made on first use.
    user_provided: each source directory makes a separate data set, which is
      prepared on first use.
    invert: the source images are dark on light; they are stored light on dark.
    light_on_dark: the images are light ink on black; images from other sources
      are converted to that, see `images.to_array`.
    rotations: 4 adds each class rotated by 90, 180 and 270 degrees as three new
      classes; 1 adds none.
    version: must be increased when the same files give different arrays.
  """

  name: str
  image_shape: tuple[int, int, int]
  layout: str
  find_records: Callable[..., Splits]
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
  """Lists the images under a folder, including those in its zip archives.

  Nothing is extracted to disk.

  Args:
    path: a folder, which is searched at any depth, or one zip archive.

  Returns:
    A function that reads the image, by path, sorted by path. Paths are relative
    to the folder, or to the root of the archive.

  Raises:
    UserError: an archive is broken, or an entry has a path outside of it.
  """
  readers = {}
  for file in sorted(_list_files(path)):
    if file.suffix.lower() == '.zip':
      for entry, read in _list_zip_entries(file):
        readers.setdefault(entry, read)
    else:
      name = PurePosixPath(file.relative_to(path))
      readers.setdefault(name, functools.partial(_read_file, file))
  return {
    name: readers[name]
    for name in sorted(readers)
    if name.suffix.lower() in IMAGE_SUFFIXES
    and not any(map(is_junk, name.parts))
  }


def _list_files(path: Path) -> Iterable[Path]:
  """Lists the files under a folder; follows links, but not in cycles."""
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


def _read_zip_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
  _check_size(entry.file_size)  # zipfile unpacks at most this size
  return archive.read(entry)


def _check_size(size: int) -> None:
  if size > MAX_BYTES:
    raise UserError(f'size of {size} bytes exceeds the limit of {MAX_BYTES}')


def _list_zip_entries(
  archive: Path,
) -> Iterable[tuple[PurePosixPath, Callable[[], bytes]]]:
  """Yields the path and a read function of each file in a zip archive."""
  try:
    require_data(archive)
    file = zipfile.ZipFile(archive)
  except Exception as error:  # broken files can raise nearly anything
    raise UserError(f'cannot read the archive {archive}: {error}') from error
  for entry in file.infolist():
    path = PurePosixPath(entry.filename.replace('\\', '/'))
    has_drive = str(path)[1:2] == ':'
    if path.is_absolute() or has_drive or '..' in path.parts:
      raise UserError(
        f'unsafe archive {archive}: the path of entry {entry.filename!r} is'
        ' outside of the archive'
      )
    if not entry.is_dir():
      yield path, functools.partial(_read_zip_entry, file, entry)


def find_split_files(
  name: str, directory: Path, file_names: Mapping[str, str]
) -> dict[str, Path]:
  """Finds one file for each split.

  Args:
    name: the name of the data set, for messages.
    directory: contains the files.
    file_names: by split.

  Returns:
    The paths by split; empty if there is none of these files.

  Raises:
    UserError: only some of the files exist.
  """
  paths = {split: directory / file for split, file in file_names.items()}
  missing = [path.name for path in paths.values() if not path.is_file()]
  if len(missing) == len(paths):
    return {}
  if missing:
    found = sorted({*file_names.values()}.difference(missing))
    raise UserError(
      f'{name}: {directory} contains {", ".join(found)} but not'
      f' {", ".join(missing)}'
    )
  return paths


def find_split_folders(
  name: str, images: Images, *, nested_classes: bool = False
) -> Splits:
  """Lists the images of class folders in folders of splits.

  Args:
    name: the name of the data set, for messages.
    images: from `scan_images`.
    nested_classes: a class is any folder with images, such as
      ALPHABET/CHARACTER, rather than a folder of a split with all its images.

  Returns:
    The records by split, sorted by class; empty if there are no folders of
    splits.

  Raises:
    UserError: there are images in other folders, or several folders of the same
      split.
  """
  root, split_of = find_layout(images)
  if not split_of:
    return {}
  for split, count in Counter(split_of.values()).items():
    if count > 1:
      folders = [folder for folder in split_of if split_of[folder] == split]
      raise UserError(
        f'{name}: several folders for split {split!r}: {", ".join(folders)}'
      )
  splits = {split: [] for split in SPLITS}
  others = set()
  for path, read in images.items():
    folder, *rest = path.parts[len(root.parts) :] or ['']
    if folder in split_of and len(rest) > 1:
      depth = len(rest) - 1 if nested_classes else 1
      label, key = '/'.join(rest[:depth]), '/'.join(rest[depth:])
      splits[split_of[folder]].append(Record(label, key, read))
    elif folder not in split_of and rest:
      others.add(folder)
  if others:
    raise UserError(
      f'{name}: found image folders other than {", ".join(split_of)}:'
      f' {", ".join(sorted(others))}'
    )
  return {
    split: sorted(found, key=lambda record: record.label)
    for split, found in splits.items()
  }


def list_tfds_records(
  name: str, directory: Path, tfds_name: str
) -> list[Record]:
  """Lists the records of a data set prepared by TFDS, sorted by class.

  Args:
    name: the name of the data set here, for messages.
    directory: contains NAME/VERSION/, or is one of these two directories.
    tfds_name: the name of the data set in TFDS; it has the features 'image' and
      'label'.

  Returns:
    The records of all TFDS splits; empty if there are no such files.

  Raises:
    UserError: the files are broken, or have a format without random access.
  """
  for pattern in (f'{tfds_name}/*/', '*/', ''):
    for info in sorted(directory.glob(f'{pattern}dataset_info.json')):
      folder = info.parent
      try:
        if json.loads(info.read_text('utf-8')).get('name') == tfds_name:
          return _read_tfds_records(name, folder)
      except UserError:
        raise
      except Exception as error:  # broken files can raise nearly anything
        raise UserError(f'{name}: cannot read {folder}: {error}') from error
  return []


def load_tfds_builder(folder: Path) -> Any:
  """Loads the TFDS builder of prepared files.

  Raises:
    UserError: the files name features outside of TFDS, for which TFDS would
      import arbitrary modules.
  """
  import tensorflow_datasets as tfds  # saves start-up time

  pending = [json.loads((folder / 'features.json').read_text('utf-8'))]
  while pending:
    node = pending.pop()
    pending += node.values() if isinstance(node, dict) else ()
    pending += node if isinstance(node, list) else ()
    for key in ('pythonClassName', 'type'):
      name = node.get(key, '') if isinstance(node, dict) else ''
      is_module = isinstance(name, str) and '.' in name
      if is_module and not name.startswith(TFDS_FEATURES):
        raise UserError(
          f'unsafe TFDS files in {folder}: feature {printable(name)} is not'
          ' part of TFDS'
        )
  return tfds.builder_from_directory(folder)


def _read_tfds_records(name: str, folder: Path) -> list[Record]:
  import tensorflow_datasets as tfds  # saves start-up time

  builder = load_tfds_builder(folder)
  file_format = builder.info.file_format.value
  if file_format != 'array_record':
    raise UserError(
      f'{name}: {folder} contains {file_format} files, which do not support'
      f' random access; rebuild them with: tfds build {builder.name}'
      ' --file_format=array_record'
    )
  features = builder.info.features
  decoders = {
    key: tfds.decode.SkipDecoding()
    for key, feature in features.items()
    if isinstance(feature, tfds.features.Image)
  }
  records = []
  for split in sorted(builder.info.splits):
    examples = builder.as_data_source(split, decoders=decoders)
    for i, example in enumerate(examples):
      label = features['label'].int2str(example['label'])
      read = functools.partial(_read_tfds_image, examples, i)
      records.append(Record(label, f'{split} {i:06d}', read))
  return sorted(records, key=lambda record: record.label)


def _read_tfds_image(examples: Sequence, i: int) -> bytes:
  return examples[i]['image']


def encode_png(image: np.ndarray) -> bytes:
  """Encodes a uint8 image [H, W, 3] as PNG."""
  from PIL import Image  # saves start-up time

  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'png', compress_level=1)
  return buffer.getvalue()


def verify_counts(spec: DatasetSpec, splits: Splits) -> None:
  """Raises UserError unless `splits` has the counts specified by `spec`."""
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
  for label, num_splits in Counter(chain(*sizes.values())).items():
    if num_splits > 1:
      raise UserError(f'{spec.name}: class {label!r} is in several splits')
