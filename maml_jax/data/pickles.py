"""Reading pickles that hold NumPy arrays, and nothing that could run code."""

import pickle
import pickletools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maml_jax.errors import UserError


def load(path: Path) -> Any:
  """Loads a pickle of plain containers, numbers, strings and NumPy arrays.

  Nothing else that the file names is imported or called. Pickles of Python 2
  are read too.

  Raises:
    UserError: the file is no pickle, or asks for anything else.
  """
  try:
    with open(path, 'rb') as file:
      return _Unpickler(file, encoding='latin1').load()
  except UserError as error:
    raise UserError(f'refused: {path} {error}') from error
  except Exception as error:  # A broken pickle can raise nearly anything.
    raise UserError(f'cannot read the pickle {path}: {error}') from error


def load_images(
  name: str, path: Path, image_shape: tuple[int, int, int]
) -> tuple[np.ndarray, list, dict]:
  """Loads a pickle of {'data': uint8 [N, H, W, C], 'labels': N of them, ...}.

  Returns:
    The images, their labels, and the whole dict.

  Raises:
    UserError: it is something else; `name` is the data set's.
  """
  content = load(path)
  if not isinstance(content, dict) or not {'data', 'labels'} <= content.keys():
    raise UserError(f'{name}: {path} should hold a dict of data, labels')
  data, labels = np.asarray(content['data']), list(content['labels'])
  if data.dtype != np.uint8 or data.shape != (len(labels), *image_shape):
    expected = ', '.join(map(str, image_shape))
    raise UserError(
      f'{name}: {path} holds data {data.dtype}{list(data.shape)} and'
      f' {len(labels)} labels, expected uint8[N, {expected}] and N labels'
    )
  return data, labels, content


class Blob(NamedTuple):
  """Where some bytes lie in a pickle."""

  path: Path
  start: int
  size: int
  as_text: bool  # one character a byte, as Python 3 writes for Python 2

  def read(self) -> bytes:
    with open(self.path, 'rb') as file:
      file.seek(self.start)
      content = file.read(self.size)
    return content.decode().encode('latin1') if self.as_text else content


def find_blobs(path: Path, prefix: bytes) -> list[Blob]:
  """Finds the bytes in a pickle that begin with `prefix`, in their order.

  It does not matter what holds them: a list of `bytes`, or of arrays of bytes.
  The file is read through but nothing of it is rebuilt, so that it may be
  larger than the memory, and may hold anything.

  Raises:
    UserError: the file is no pickle.
  """
  blobs = []
  try:
    with open(path, 'rb') as file:
      for opcode, content, _ in pickletools.genops(file):
        # Text that is Latin-1 bytes: UTF-8 in the file if of Python 3.
        as_text = 'BINUNICODE' in opcode.name
        if isinstance(content, str) and 'BIN' in opcode.name:
          found = content.startswith(prefix.decode('latin1'))
        elif isinstance(content, bytes | bytearray):
          found = content.startswith(prefix)
        else:
          continue
        if found:
          size = len(content.encode() if as_text else content)
          blobs.append(Blob(path, file.tell() - size, size, as_text))
  except Exception as error:  # A broken pickle can raise nearly anything.
    raise UserError(f'cannot read the pickle {path}: {error}') from error
  return blobs


class _Unpickler(pickle.Unpickler):
  """Finds no globals but those that rebuild arrays."""

  def find_class(self, module: str, name: str) -> Any:
    name = f'{module}.{name}'
    known = name.replace('numpy._core.', 'numpy.core.')  # moved in NumPy 2
    if known not in _GLOBALS:
      raise UserError(f'asks for {name}; only NumPy arrays are accepted')
    return _GLOBALS[known]


def _encode(text: str, encoding: str) -> bytes:
  """How Python 3 writes bytes in the protocols of Python 2."""
  if encoding != 'latin1':
    raise UserError(f'asks for {encoding!r}; only latin1 bytes are accepted')
  return text.encode('latin1')


_GLOBALS = {
  'numpy.dtype': np.dtype,
  'numpy.ndarray': np.ndarray,
  'numpy.core.multiarray._reconstruct': np.zeros(0).__reduce__()[0],
  'numpy.core.multiarray.scalar': np.uint8(0).__reduce__()[0],
  'numpy.core.numeric._frombuffer': np.zeros(0).__reduce_ex__(5)[0],
  '_codecs.encode': _encode,
}
