"""Support and query images in folders: listing, reading, duplicates, limits.

Unreadable files are skipped with a warning.
"""

import os
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from maml_jax.data import images
from maml_jax.data.folder_layout import find_layout, split_of_folder
from maml_jax.data.images import Picture, UnreadableImageError
from maml_jax.utils.console import print_warning
from maml_jax.utils.errors import UserError
from maml_jax.utils.files import oserror_message

__all__ = [
  'MAX_SUPPORT_IMAGES',
  'ImageReader',
  'Query',
  'SupportSet',
  'find_queries',
  'find_support',
  'read_support',
]

MAX_SUPPORT_IMAGES = 1000  # over all classes


class Query(NamedTuple):
  """An image file to classify.

  Attributes:
    path: the file.
    folders: its folders within the given folder, without the folder of a split;
      empty if the file was given itself.
  """

  path: pathlib.Path
  folders: tuple[str, ...]

  def truth(self, class_names: Collection[str]) -> str:
    """Returns the first of the folders named like a class; '' if none is."""
    return next((name for name in self.folders if name in class_names), '')


class SupportSet(NamedTuple):
  """The labeled images to adapt to.

  Attributes:
    classes: [W] names of the classes, sorted.
    pictures: [N] the images.
    labels: [N] int32, 0..W-1.
  """

  classes: list[str]
  pictures: list[Picture]
  labels: np.ndarray

  @property
  def pixels(self) -> np.ndarray:
    """uint8 [N, H, W, C]."""
    return np.stack([picture.pixels for picture in self.pictures])

  @property
  def class_sizes(self) -> np.ndarray:
    """[W] the number of images of each class."""
    return np.bincount(self.labels)


class ImageReader:
  """Reads image files and skips unreadable ones with a warning.

  Args:
    spec: the data set whose image format is needed.

  Attributes:
    skipped: the reasons by path of the skipped files.
  """

  def __init__(self, spec):
    self.skipped: dict[str, str] = {}
    self._spec = spec

  def read(self, paths: Iterable[pathlib.Path]) -> Iterator[Picture]:
    """Yields the readable images."""
    for path in paths:
      try:
        yield images.read_image(path, self._spec)
      except UnreadableImageError as error:
        self.skipped[str(path)] = str(error)
        print_warning(f'skipped {path}: {error}')


def find_support(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  """Lists the files of each class; `folder` has one folder per class.

  The class folders may be in a wrapper folder.

  Raises:
    UserError: the folder does not exist, has fewer than two classes, or has
      folders of splits such as `train` and `test` instead of classes.
  """
  if not folder.exists():
    raise UserError(f'--support={folder}: no such folder')
  if not folder.is_dir():
    raise UserError(
      f'--support={folder}: not a folder; expected a folder with one folder of '
      'images per class'
    )
  root = _find_class_folders(folder)
  try:
    class_files, other_files = images.list_class_folders(root)
  except OSError as error:
    raise UserError(
      f'cannot read {folder}: {oserror_message(error)}'
    ) from error
  for path in other_files:
    print_warning(f'skipped {path}: not in a class folder')
  if len(class_files) > 1 and all(map(split_of_folder, class_files)):
    print_warning(
      f'--support={folder}: the classes are named like splits:'
      f' {", ".join(class_files)}'
    )
  if len(class_files) < 2:
    found = f'only {list(class_files)[0]!r}' if class_files else 'none'
    raise UserError(
      f'--support={folder}: expected two or more class folders, found {found}'
    )
  return class_files


def _find_class_folders(folder: pathlib.Path) -> pathlib.Path:
  """Returns the folder that contains the class folders.

  Raises:
    UserError: it contains folders of splits.
  """
  layout = find_layout(
    path.relative_to(folder) for path in images.list_files(folder)
  )
  root = folder / layout.root
  if layout.splits:
    folders = {split: root / name for name, split in layout.splits.items()}
    example = f'--support={folders.get("train", root / min(layout.splits))}'
    if {'train', 'test'} <= folders.keys():
      example += f' --query={folders["test"]}'
    raise UserError(
      f'--support={folder}: contains the splits {", ".join(layout.splits)}'
      f' instead of classes; use, for example, {example}'
    )
  return root


def read_support(
  class_files: Mapping[str, Sequence[pathlib.Path]], reader: ImageReader
) -> SupportSet:
  """Reads a support set of at most `MAX_SUPPORT_IMAGES` images.

  Args:
    class_files: from `find_support`. If a class has more files than its share,
      evenly spaced ones are used.
    reader: reads the files.

  Raises:
    UserError: a class has no readable image.
  """
  pictures, labels = [], []
  max_files = max(MAX_SUPPORT_IMAGES // len(class_files), 1)
  for label, (name, files) in enumerate(class_files.items()):
    if len(files) > max_files:
      print_warning(
        f'using {max_files} of the {len(files)} files of class {name!r}: a '
        f'support set has at most {MAX_SUPPORT_IMAGES} images'
      )
      rows = np.linspace(0, len(files) - 1, max_files).astype(int)
      files = [files[row] for row in rows]
    class_pictures = list(reader.read(files))
    if not class_pictures:
      raise UserError(f'--support: class {name!r} has no readable image')
    pictures += class_pictures
    labels += [label] * len(class_pictures)
  _warn_about_duplicates(pictures, labels)
  return SupportSet(list(class_files), pictures, np.array(labels, np.int32))


def find_queries(paths: Sequence[str | os.PathLike]) -> list[Query]:
  """Lists the given files and those in the given folders, each once.

  Raises:
    UserError: a path does not exist, or a folder contains no files.
  """
  queries, seen = [], set()
  for path in map(pathlib.Path, paths):
    for query in _list_queries(path):
      real_path = os.path.realpath(query.path)
      if real_path in seen:
        print_warning(f'{query.path} is given twice; it is classified once')
      else:
        seen.add(real_path)
        queries.append(query)
  return queries


def _list_queries(path: pathlib.Path) -> list[Query]:
  """Lists a file, or the files of a folder with their true classes."""
  if not path.exists():
    raise UserError(f'no such file or folder: {path}')
  if not path.is_dir():
    return [Query(path, ())]
  files = images.list_files(path)
  if not files:
    raise UserError(f'no files in folder {path}')
  layout = find_layout(file.relative_to(path) for file in files)
  depth = len(layout.root.parts)
  if layout.splits:
    print_warning(
      f'{path} contains the splits {", ".join(layout.splits)}: the images of'
      ' all are classified'
    )
  queries = []
  for file in files:
    folders = list(file.relative_to(path).parts[:-1])
    if folders[depth:] and folders[depth] in layout.splits:
      del folders[depth]
    queries.append(Query(file, tuple(folders)))
  return queries


def _warn_about_duplicates(
  pictures: Sequence[Picture], labels: Sequence[int]
) -> None:
  first = {}
  for picture, label in zip(pictures, labels, strict=True):
    path, first_label = first.setdefault(picture.digest, (picture.path, label))
    if path != picture.path:
      where = ' in different classes' if first_label != label else ''
      print_warning(f'{path} and {picture.path} are the same image{where}')
