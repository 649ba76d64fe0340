"""Images that are sent to the page of `app`: reading, limits, deletion."""

import base64
import pathlib
import uuid
from typing import TypeGuard

from maml_jax.data.images import Picture, UnreadableImageError, read_image
from maml_jax.data.records import DatasetSpec

__all__ = ['MAX_FILES', 'Uploads', 'is_drawing', 'read_uploads']

MAX_PIXELS = 40_000_000  # of one image
MAX_FILES = 50  # at a time


class Uploads:
  """The uploads of all open pages.

  Args:
    folder: contains the uploads.
    spec: the data set whose image format is needed.
    kept: a folder in `folder` whose files are not uploads.
  """

  def __init__(
    self, folder: pathlib.Path, spec: DatasetSpec, kept: pathlib.Path
  ):
    self._folder, self._spec, self._kept = folder, spec, kept
    self._pages: set[str | None] = set()

  def read(
    self, source: str | list[str] | None
  ) -> tuple[list[Picture], list[str]]:
    """Reads and deletes images; returns them and messages on the others.

    Args:
      source: a drawing as a data URI, or one or more paths.
    """
    if is_drawing(source):
      path = self._folder / f'drawing-{uuid.uuid4().hex}.png'
      path.write_bytes(base64.b64decode(source.partition(',')[2]))
      source = str(path)
    paths = [source] if isinstance(source, str) else source or ()
    return read_uploads([pathlib.Path(x) for x in paths if x], self._spec)

  def open_page(self, page: str | None) -> None:
    """Counts an open page.

    Args:
      page: the session of the page.
    """
    self._pages.add(page)

  def close_page(self, page: str | None) -> None:
    """Deletes unused uploads if no other page is open, which may use them."""
    self._pages.discard(page)
    for path in () if self._pages else self._folder.rglob('*'):
      if path.is_file() and not path.is_relative_to(self._kept):
        path.unlink(missing_ok=True)


def is_drawing(source: object) -> TypeGuard[str]:
  """Returns whether a source of images is a drawing as a data URI."""
  return isinstance(source, str) and source.startswith('data:')


def read_uploads(
  paths: list[pathlib.Path], spec: DatasetSpec
) -> tuple[list[Picture], list[str]]:
  """Reads and deletes files; returns the images and messages on the others."""
  pictures, messages = [], []
  if len(paths) > MAX_FILES:
    messages.append(f'using {MAX_FILES} of the {len(paths)} files')
  for path in paths[:MAX_FILES]:
    try:
      pictures.append(read_image(path, spec, MAX_PIXELS))
    except UnreadableImageError as error:
      messages.append(f'skipped {path.name}: {error}')
  for path in paths:
    path.unlink(missing_ok=True)
  return pictures, messages
