"""CSV files that list the images and the class labels of each split."""

import csv
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from maml_jax.data import records
from maml_jax.data.file_kinds import require_data
from maml_jax.utils.errors import UserError

__all__ = ['Row', 'find_csv_splits', 'read_csv', 'records_from_rows']

SPLITS_DIR = 'fs-splits'  # directory of the CSV files
MAX_CANDIDATES = 5  # listed in messages


class Row(NamedTuple):
  """One image of a split.

  Attributes:
    path: the path of the image, or the last components of it.
    label: the class label.
  """

  path: PurePosixPath
  label: str


def find_csv_splits(
  name: str, directory: Path, *optional: str
) -> dict[str, list[Row]]:
  """Reads the CSV files of a data set.

  Args:
    name: the name of the data set, for messages.
    directory: contains the CSV files, or a directory `fs-splits` with them.
    *optional: splits that may lack a CSV file.

  Returns:
    The rows by split; empty if there are no CSV files.

  Raises:
    UserError: only some of the splits have a CSV file, or a row is incomplete.
  """
  for folder in (directory / SPLITS_DIR, directory):
    paths = {split: folder / f'{split}.csv' for split in records.SPLITS}
    rows = {
      split: read_csv(name, path)
      for split, path in paths.items()
      if path.is_file()
    }
    missing = set(paths).difference(rows, optional)
    if rows and missing:
      raise UserError(
        f'{name}: {folder} contains {_file_names(rows)} but not'
        f' {_file_names(sorted(missing))}'
      )
    if rows:
      return rows
  return {}


def _file_names(splits: Iterable[str]) -> str:
  return ', '.join(f'{split}.csv' for split in splits)


def read_csv(name: str, path: Path) -> list[Row]:
  """Reads rows of a file name and a label.

  Without a header that names the columns `filename` and `label`, they are the
  first two.

  Args:
    name: the name of the data set, for messages.
    path: the CSV file.

  Raises:
    UserError: the file is not a table, or a row is incomplete.
  """
  try:
    require_data(path)
  except ValueError as error:
    raise UserError(f'{name}: cannot read {path}: {error}') from error
  rows, columns = [], [0, 1]
  with open(path, newline='', encoding='utf-8-sig') as file:
    reader = csv.reader(file)
    for fields in reader:
      fields = [field.strip() for field in fields]
      header = [field.lower() for field in fields]
      if not rows and 'filename' in header:
        first = header.index('filename')
        has_label = 'label' in header
        columns = [first, header.index('label') if has_label else first + 1]
        continue
      if not any(fields):
        continue
      values = [fields[c] for c in columns if c < len(fields) and fields[c]]
      if len(values) < 2:
        raise UserError(
          f'{name}: {path}, line {reader.line_num}: expected a filename and a '
          f'label, got {fields}'
        )
      rows.append(Row(PurePosixPath(values[0].replace('\\', '/')), values[1]))
  return rows


def records_from_rows(
  name: str,
  directory: Path,
  images: records.Images,
  rows: Mapping[str, Iterable[Row]],
) -> records.Splits:
  """Returns the records of the images that CSV rows refer to.

  A row refers to the image whose path ends in the path of the row; the type of
  the file, such as .jpg, matters only if there are several. Among several
  images, the one in a folder named like the label is used. Leading folders that
  the paths of all rows have, but not the images, are ignored.

  Classes are named by their labels, unless all labels of the split are numbers.
  Numbered classes are named by the folder of their images if each class has a
  single folder with a unique name, else by split and number.

  Args:
    name: the name of the data set, for messages.
    directory: contains the images, for messages.
    images: of the directory, from `records.scan_images`.
    rows: by split.

  Raises:
    UserError: a row matches no image or several images, or two rows of a split
      match the same image.
  """
  wanted = [row.path for split in rows.values() for row in split]
  find_images = _make_finder(list(images), wanted)
  splits = {}
  for split in records.SPLITS:
    paths, row_of = {}, {}
    for row in rows.get(split, ()):
      found = find_images(row)
      if len(found) != 1:
        raise UserError(
          f'{name}: {split}.csv lists {row.path}, which matches'
          f' {len(found) or "none"} of the {len(images)} images under'
          f' {directory}{_candidates(found)}'
        )
      paths[row] = found[0]
      if (other := row_of.setdefault(found[0], row)) != row:
        raise UserError(
          f'{name}: {split}.csv lists {other.path} with label {other.label!r}'
          f' and {row.path} with label {row.label!r}, which both match'
          f' {found[0]}'
        )
    names = _class_names(split, paths)
    splits[split] = sorted(
      (
        records.Record(names[row.label], str(row.path), images[path])
        for row, path in paths.items()
      ),
      key=lambda record: record[:2],
    )
  return splits


def _candidates(paths: Sequence[PurePosixPath]) -> str:
  """Returns the end of a message that lists the images a row matches."""
  if not paths:
    return ''
  more = len(paths) - MAX_CANDIDATES
  listed = ', '.join(map(str, paths[:MAX_CANDIDATES]))
  return f': {listed}' + (f' and {more} more' if more > 0 else '')


def _make_finder(
  images: Sequence[PurePosixPath], wanted: Collection[PurePosixPath]
) -> Callable[[Row], list[PurePosixPath]]:
  """Makes a function that returns the images that a row may refer to.

  Args:
    images: the paths of the images.
    wanted: the paths of all rows. The smallest number of leading folders is
      removed from each so that any path matches. It is the same for all rows:
      otherwise the row of a missing image could match the image of the same
      name of another class.
  """
  by_suffix = {}  # by number of components, then by the last components

  def lookup(path: PurePosixPath, start: int) -> list[PurePosixPath]:
    parts = _without_type(path)
    parts = parts[min(start, len(parts) - 1) :]
    if len(parts) not in by_suffix:
      index = by_suffix[len(parts)] = defaultdict(list)
      for image in images:
        index[_without_type(image)[-len(parts) :]].append(image)
    return by_suffix[len(parts)].get(parts, [])

  depth = max((len(path.parts) for path in wanted), default=1)
  start = next(
    (k for k in range(depth) if any(lookup(path, k) for path in wanted)), 0
  )

  def find_images(row: Row) -> list[PurePosixPath]:
    found = lookup(row.path, start)
    for is_preferred in (
      lambda image: image.name == row.path.name,
      lambda image: row.label in image.parts[:-1],
    ):
      if len(found) > 1:
        found = list(filter(is_preferred, found)) or found
    return found

  return find_images


def _without_type(path: PurePosixPath) -> tuple[str, ...]:
  """Returns the components of the path of an image, without .jpg or similar."""
  if path.suffix.lower() in records.IMAGE_SUFFIXES:
    path = path.with_suffix('')
  return path.parts


def _class_names(
  split: str, paths: Mapping[Row, PurePosixPath]
) -> dict[str, str]:
  """Returns the class name of each label, given the image of each row."""
  labels = {row.label for row in paths}
  if not all(label.isdecimal() for label in labels):
    return {label: label for label in labels}
  folders = defaultdict(set)
  for row, path in paths.items():
    folders[row.label].add(path.parent)
  all_folders = set().union(*folders.values())
  one_each = all(len(found) == 1 for found in folders.values())
  if one_each and len({path.name for path in all_folders}) == len(labels):
    return {label: found.pop().name for label, found in folders.items()}
  return {label: f'{split} class {label}' for label in labels}
