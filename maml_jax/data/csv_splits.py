"""CSV files that list the images and the class labels of each split."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from maml_jax.data import records
from maml_jax.utils.errors import UserError

__all__ = ['Row', 'find_csv_splits', 'read_csv', 'records_from_rows']

SPLITS_DIR = 'fs-splits'  # directory of the CSV files


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
  """Reads rows of a file name and a label; skips a header.

  Args:
    name: the name of the data set, for messages.
    path: the CSV file.

  Raises:
    UserError: a row is incomplete.
  """
  rows = []
  with open(path, newline='', encoding='utf-8-sig') as file:
    for fields in csv.reader(file):
      fields = [field.strip() for field in fields]
      is_header = [f.lower() for f in fields[:1]] == ['filename']
      if is_header or not any(fields):
        continue
      if len(fields) < 2 or not all(fields[:2]):
        raise UserError(
          f'{name}: {path}: row without filename or label: {fields}'
        )
      image = PurePosixPath(fields[0].replace('\\', '/'))
      rows.append(Row(image, fields[1]))
  return rows


def records_from_rows(
  name: str, directory: Path, rows: Mapping[str, Iterable[Row]]
) -> records.Splits:
  """Returns the records of the images that CSV rows refer to.

  A row refers to the only image under `directory` whose path ends in the path
  of the row.

  Classes are named by their labels, unless all labels of the split are numbers.
  Numbered classes are named by the folder of their images if each class has a
  single folder with a unique name, else by split and number.

  Args:
    name: the name of the data set, for messages.
    directory: contains the images, at any depth.
    rows: by split.

  Raises:
    UserError: a row matches no image or several images.
  """
  images = records.scan_images(directory)
  images_by_name = defaultdict(list)
  for path in images:
    images_by_name[path.name].append(path)

  def find_image(split: str, wanted: PurePosixPath) -> PurePosixPath:
    parts = wanted.parts
    paths = [
      path
      for path in images_by_name[wanted.name]
      if path.parts[-len(parts) :] == parts
    ]
    if len(paths) != 1:
      raise UserError(
        f'{name}: {split}.csv lists {wanted}, which matches'
        f' {len(paths) or "none"} of the {len(images)} images under {directory}'
      )
    return paths[0]

  splits = {}
  for split in records.SPLITS:
    paths = {row: find_image(split, row.path) for row in rows.get(split, ())}
    names = _class_names(split, paths)
    splits[split] = sorted(
      (
        records.Record(names[row.label], str(row.path), images[path])
        for row, path in paths.items()
      ),
      key=lambda record: record[:2],
    )
  return splits


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
