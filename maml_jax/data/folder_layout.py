"""Layouts of image folders: junk files, wrapper folders, folders of splits."""

from collections.abc import Iterable
from pathlib import PurePath
from typing import NamedTuple

__all__ = ['FolderLayout', 'find_layout', 'is_junk', 'split_of_folder']

SPLIT_NAMES = {
  'train': 'train',
  'training': 'train',
  'val': 'val',
  'valid': 'val',
  'validation': 'val',
  'dev': 'val',
  'test': 'test',
  'testing': 'test',
}
# Files and folders of macOS, Windows and network drives.
JUNK_NAMES = frozenset(
  {
    '__macosx',
    'icon\r',
    'thumbs.db',
    'ehthumbs.db',
    'desktop.ini',
    '$recycle.bin',
    'system volume information',
    '@eadir',
  }
)


class FolderLayout(NamedTuple):
  """Where the class folders are.

  Attributes:
    root: the folder that contains the class folders, or the folders of the
      splits; '.' if there are no wrapper folders.
    splits: 'train', 'val' or 'test', by the name of the folder of the split;
      empty if there are class folders only.
  """

  root: PurePath
  splits: dict[str, str]


def is_junk(name: str) -> bool:
  """Returns whether a file or folder is hidden or created by the system."""
  return name.startswith('.') or name.lower() in JUNK_NAMES


def split_of_folder(name: str) -> str | None:
  """Returns 'train', 'val' or 'test' if a folder is named like a split."""
  return SPLIT_NAMES.get(name.lower())


def find_layout(paths: Iterable[PurePath]) -> FolderLayout:
  """Returns the layout of a folder.

  A folder that contains all class folders is a wrapper. Folders named like
  splits are splits if they contain class folders and all folders beside them
  are named like splits, or at least two of them contain class folders. Any
  other folder is a class: `train` may be a class beside `car` and `bus`.

  Args:
    paths: of the files, relative to the folder.
  """
  folders = {path.parent for path in paths}
  below = {folder.parts for folder in folders if folder.parts}
  root: list[str] = []
  while True:
    names = {parts[0] for parts in below}
    parents = {parts[0] for parts in below if len(parts) > 1}
    split_names = set(filter(split_of_folder, names))
    is_split_level = bool(split_names & parents) and (
      split_names == names or len(split_names & parents) > 1
    )
    if len(names) != 1 or not parents:
      break
    below = {parts[1:] for parts in below if len(parts) > 1}
    root += names
  if not is_split_level and root and split_of_folder(root[-1]):
    is_split_level, split_names = True, {root.pop()}
  splits = {}
  for name in sorted(split_names) if is_split_level else ():
    splits[name] = split_of_folder(name)
  return FolderLayout(PurePath(*root), splits)
