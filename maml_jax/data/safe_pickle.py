"""Reading pickles that hold NumPy arrays, and nothing that could run code."""

import math
import os
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maml_jax.utils.errors import UserError, printable


def load(path: Path) -> Any:
  """Loads a pickle of plain containers, numbers, strings and NumPy arrays.

  Nothing else that the file names is imported or called, and no array is made
  but of bytes that are there. Pickles of Python 2 are read too.

  Raises:
    UserError: the file is no pickle, or asks for anything else.
  """
  try:
    with open(path, 'rb') as file:
      _check_opcodes(file)
      file.seek(0)
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


class ByteRange(NamedTuple):
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


def find_byte_ranges(path: Path, prefix: bytes) -> list[ByteRange]:
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
          blobs.append(ByteRange(path, file.tell() - size, size, as_text))
  except Exception as error:  # A broken pickle can raise nearly anything.
    raise UserError(f'cannot read the pickle {path}: {error}') from error
  return blobs


def _check_opcodes(file) -> None:
  """Refuses what arrays need not, and a memo beyond the size of the file."""
  size = os.fstat(file.fileno()).st_size
  for opcode, content, _ in pickletools.genops(file):
    if opcode.name in _FORBIDDEN:
      raise UserError(f'asks for {opcode.name}; only arrays are accepted')
    if opcode.name in _MEMO and int(content) > size:
      raise UserError(f'counts {content} parts in {size} bytes')


class _Unpickler(pickle.Unpickler):
  """Finds no globals but those that rebuild arrays."""

  def find_class(self, module: str, name: str) -> Any:
    name = f'{module}.{name}'
    known = name.replace('numpy._core.', 'numpy.core.')  # moved in NumPy 2
    if known not in _GLOBALS:
      raise UserError(
        f'asks for {printable(name)}; only NumPy arrays are accepted'
      )
    return _GLOBALS[known]


class _Array(np.ndarray):
  """An array that takes no state but plain numbers, or a list of objects.

  NumPy trusts a state, and may read memory that is none if it lies.
  """

  def __setstate__(self, state):
    *_, shape, dtype, by_column, content = state
    dtype = _dtype_of(dtype)
    if not all(type(n) is int and 0 <= n < 2**40 for n in shape):
      raise UserError(f'holds an array of shape {printable(shape)}')
    number = math.prod(shape)
    kind = list if dtype.hasobject else bytes
    size = number if dtype.hasobject else number * dtype.itemsize
    if isinstance(content, str):  # bytes of Python 2
      content = content.encode('latin1')
    if not isinstance(content, kind) or len(content) != size:
      raise UserError(f'holds an array {printable(shape)} of other contents')
    super().__setstate__((1, shape, dtype, bool(by_column), content))


class _DType:
  """What is asked for as a dtype, until all of it is known."""

  __slots__ = ('_code', '_order')

  def __init__(self, code, *_):
    self._code, self._order = str(code), '='
    if not re.fullmatch(r'[biufSUO]\d{0,6}', self._code):
      raise UserError(
        f'asks for numbers {printable(code)}; only plain ones are'
      )

  def __setstate__(self, state):
    self._order = state[1]
    if self._order not in ('<', '>', '|', '='):
      raise UserError('asks for numbers in no order')

  def numpy(self) -> np.dtype:
    """The dtype."""
    return np.dtype(self._code).newbyteorder(self._order)


class _Maker:
  """A function that a pickle can call, and do nothing else with."""

  __slots__ = ('_function',)

  def __init__(self, function):
    self._function = function

  def __call__(self, *args):
    return self._function(*args)

  def __setstate__(self, _):
    raise UserError('changes a function')


def _dtype_of(dtype: Any) -> np.dtype:
  if not isinstance(dtype, _DType):
    raise UserError('holds an array of no known numbers')
  return dtype.numpy()


def _empty(kind: Any, shape: Any, code: Any) -> np.ndarray:
  """An array that waits for its state."""
  if kind is not _NDARRAY or shape != (0,):
    raise UserError(f'asks for an empty array {printable(shape)}')
  return _Array((0,), np.uint8)


def _from_buffer(buffer, dtype, shape, order='C') -> np.ndarray:
  if not isinstance(buffer, bytes | bytearray) or order not in ('C', 'F'):
    raise UserError('holds an array of other contents')
  dtype = _dtype_of(dtype)
  return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _scalar(dtype, content) -> np.generic:
  if isinstance(content, str):  # bytes of Python 2
    content = content.encode('latin1')
  dtype = _dtype_of(dtype)
  if not isinstance(content, bytes) or len(content) != dtype.itemsize:
    raise UserError('holds a number of other contents')
  return np.frombuffer(content, dtype)[0]


def _refuse(*_):
  raise UserError('makes an array of nothing')


def _encode(text: str, encoding: str) -> bytes:
  """How Python 3 writes bytes in the protocols of Python 2."""
  if encoding != 'latin1':
    raise UserError(
      f'asks for {printable(encoding)}; only latin1 bytes are accepted'
    )
  return text.encode('latin1')


_NDARRAY = _Maker(_refuse)
_GLOBALS = {
  'numpy.dtype': _Maker(_DType),
  'numpy.ndarray': _NDARRAY,
  'numpy.core.multiarray._reconstruct': _Maker(_empty),
  'numpy.core.multiarray.scalar': _Maker(_scalar),
  'numpy.core.numeric._frombuffer': _Maker(_from_buffer),
  '_codecs.encode': _Maker(_encode),
}
# Other ways to call and to import, and to share memory.
_FORBIDDEN = frozenset(
  'INST OBJ NEWOBJ NEWOBJ_EX EXT1 EXT2 EXT4 PERSID BINPERSID NEXT_BUFFER'
  ' READONLY_BUFFER DUP'.split()
)
_MEMO = frozenset('PUT BINPUT LONG_BINPUT'.split())
