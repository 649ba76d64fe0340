"""Recognition of files that are not data, such as failed downloads."""

import re
from pathlib import Path

__all__ = ['describe_non_data', 'require_data']

HTML = re.compile(
  rb'(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--[^>]*>\s*)*'
  rb'<(!doctype\s+html|html|head|body|title|meta|script)\b',
  re.IGNORECASE,
)
GIT_LFS = b'version https://git-lfs.github.com/spec/'
START_BYTES = 1024  # enough to recognize a file


def describe_non_data(content: bytes) -> str | None:
  """Returns what a file is that cannot be data; None if it may be data.

  Args:
    content: the file, or the first `START_BYTES` of it.
  """
  if not content:
    return 'empty file'
  if content.startswith(GIT_LFS):
    return 'Git LFS pointer instead of the file; run: git lfs pull'
  if HTML.match(content[:START_BYTES]):
    return 'HTML page instead of data; download the file again'
  if content[4:8] == b'ftyp':
    return 'HEIC, AVIF or video file; convert it to JPEG'
  return None


def require_data(path: Path) -> None:
  """Verifies that a file may be data.

  Raises:
    ValueError: it is empty, an HTML page or a Git LFS pointer.
    OSError: it cannot be read.
  """
  with open(path, 'rb') as file:
    if kind := describe_non_data(file.read(START_BYTES)):
      raise ValueError(kind)
