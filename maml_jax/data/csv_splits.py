"""CSV files that say which image belongs to which class of a split."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from maml_jax.data import records
from maml_jax.utils.errors import UserError

SPLITS_DIR = 'fs-splits'  # where the tables are, unless beside the images


class Row(NamedTuple):
  """One image of a split."""

  path: PurePosixPath  # of the image, or the end of its path
  label: str


def find_csv_splits(
  name: str, directory: Path, *optional: str
) -> dict[str, list[Row]]:
  """Reads the tables under `directory`, by split; none if there is none.

  Args:
    name: of the data set.
    directory: what holds them, beside the images or in a folder `fs-splits`.
    *optional: splits that need no table.

  Raises:
    UserError: some splits have a table and others have none.
  """
  for folder in (directory / SPLITS_DIR, directory):
    paths = {split: folder / f'{split}.csv' for split in records.SPLITS}
    rows = {
      s: read_csv(name, path) for s, path in paths.items() if path.is_file()
    }
    missing = set(paths).difference(rows, optional)
    if rows and missing:
      raise UserError(
        f'{name}: {folder} lacks {", ".join(sorted(missing))} beside'
        f' {", ".join(rows)} (.csv)'
      )
    if rows:
      return rows
  return {}


def read_csv(name: str, table: Path) -> list[Row]:
  """Reads rows of a file name and a label; a heading is skipped.

  Raises:
    UserError: a row is incomplete; `name` is the data set's.
  """
  rows = []
  with open(table, newline='', encoding='utf-8-sig') as file:
    for fields in csv.reader(file):
      fields = [field.strip() for field in fields]
      if not any(fields) or [f.lower() for f in fields[:1]] == ['filename']:
        continue
      if len(fields) < 2 or not all(fields[:2]):
        raise UserError(f'{name}: {table} lacks filename or label: {fields}')
      path = PurePosixPath(fields[0].replace('\\', '/'))
      rows.append(Row(path, fields[1]))
  return rows


def records_from_rows(
  name: str, directory: Path, rows: Mapping[str, Iterable[Row]]
) -> records.Splits:
  """Looks the images of the rows up, under `directory`.

  A row means the one image whose path ends in its file name.

  Classes go by their label if it is a word. If it is a number they go by the
  folder of their images where that is the same for one class and different
  for others, else by split and number.

  Args:
    name: of the data set.
    directory: what holds the images, at any depth.
    rows: by split.

  Raises:
    UserError: an image is missing, or might be one of several.
  """
  images = records.scan_images(directory)
  by_name = defaultdict(list)
  for path in images:
    by_name[path.name].append(path)

  def look_up(split: str, wanted: PurePosixPath) -> PurePosixPath:
    parts = wanted.parts
    paths = [p for p in by_name[wanted.name] if p.parts[-len(parts) :] == parts]
    if len(paths) != 1:
      which = 'several' if paths else 'none'
      raise UserError(
        f'{name}: {split}.csv lists {wanted}, which is {which} of the'
        f' {len(images)} images under {directory}'
      )
    return paths[0]

  splits = {}
  for split in records.SPLITS:
    found = {row: look_up(split, row.path) for row in rows.get(split, ())}
    names = _class_names(split, found)
    splits[split] = sorted(
      (
        records.Record(names[row.label], str(row.path), images[path])
        for row, path in found.items()
      ),
      key=lambda record: record[:2],
    )
  return splits


def _class_names(
  split: str, found: Mapping[Row, PurePosixPath]
) -> dict[str, str]:
  labels = {row.label for row in found}
  if not all(label.isdecimal() for label in labels):
    return {label: label for label in labels}
  folders = defaultdict(set)
  for row, path in found.items():
    folders[row.label].add(path.parent)
  distinct = set().union(*folders.values())
  one_each = all(len(paths) == 1 for paths in folders.values())
  if one_each and len({path.name for path in distinct}) == len(labels):
    return {label: paths.pop().name for label, paths in folders.items()}
  return {label: f'{split} class {label}' for label in labels}
