"""Loader for pickles of NumPy arrays that never runs code from the file."""

import math
import os
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from maml_jax.data.file_kinds import require_data
from maml_jax.utils.errors import UserError, printable

__all__ = [
  'ByteRange',
  'PickledImages',
  'find_byte_ranges',
  'load',
  'load_images',
  'to_text',
]


def load(path: Path) -> Any:
  """Loads a pickle of plain containers, numbers, strings and NumPy arrays.

  No other global is imported or called, and the memory of every array is backed
  by bytes in the file. Pickles written by Python 2 are supported. If the object
  is a dict, keys of type bytes are decoded.

  Raises:
    UserError: the file is not a valid pickle, or contains anything else.
  """
  try:
    require_data(path)
    with open(path, 'rb') as file:
      _check_opcodes(file)
      file.seek(0)
      content = _Unpickler(file, encoding='latin1').load()
  except UserError as error:
    raise UserError(f'unsafe pickle {path}: {error}') from error
  except Exception as error:  # a broken pickle can raise nearly anything
    raise UserError(f'cannot read the pickle {path}: {error}') from error
  if isinstance(content, dict):
    return {
      to_text(key) if isinstance(key, bytes) else key: value
      for key, value in content.items()
    }
  return content


def to_text(value: Any) -> str:
  """Returns a string, which a pickle may contain as bytes."""
  if isinstance(value, bytes):
    return value.decode('utf-8', 'replace')
  return str(value)


class PickledImages(NamedTuple):
  """Images with labels.

  Attributes:
    images: uint8 [N, H, W, C].
    labels: [N] integers or strings.
    class_names: of the labels that have a name.
  """

  images: np.ndarray
  labels: np.ndarray
  class_names: dict[Any, str]


def load_images(
  name: str, path: Path, image_shape: tuple[int, int, int]
) -> PickledImages:
  """Loads a pickled dict with images and labels.

  The dict contains 'data', uint8 [N, H, W, C], and 'labels' of length N, with
  class names in 'catname2label' if there are any; or 'image_data', uint8
  [N, H, W, C], and 'class_dict', the image numbers of each class.

  Args:
    name: the name of the data set, for messages.
    path: the pickle.
    image_shape: (H, W, C).

  Raises:
    UserError: the content is not as described.
  """
  content = load(path)
  keys = content.keys() if isinstance(content, dict) else set()
  try:
    if {'image_data', 'class_dict'} <= keys:
      images = np.asarray(content['image_data'])
      labels = _labels_of_classes(content['class_dict'], len(images))
      class_names = {label: label for label in labels.tolist()}
    elif {'data', 'labels'} <= keys:
      images = np.asarray(content['data'])
      labels = np.array([_to_label(label) for label in content['labels']])
      class_names = {
        _to_label(label): to_text(class_name)
        for class_name, label in content.get('catname2label', {}).items()
      }
    else:
      raise ValueError(
        "expected a dict with the keys 'data' and 'labels', or 'image_data' and"
        " 'class_dict'"
      )
    if images.dtype != np.uint8 or images.shape != (len(labels), *image_shape):
      expected = ', '.join(map(str, image_shape))
      raise ValueError(
        f'expected images uint8[N, {expected}] and N labels, got'
        f' {images.dtype}{list(images.shape)} and {len(labels)} labels'
      )
  except Exception as error:  # other content can raise nearly anything
    raise UserError(f'{name}: {path}: {error}') from error
  return PickledImages(images, labels, class_names)


def _to_label(label: Any) -> int | str:
  """Returns a label as an integer or a string."""
  if isinstance(label, bytes | str):
    return to_text(label)
  if int(label) != label:
    raise ValueError(f'expected integers or strings as labels, got {label}')
  return int(label)


def _labels_of_classes(class_dict: Any, num_images: int) -> np.ndarray:
  """Returns the class name of each image, given the images of each class."""
  labels = np.full(num_images, None, object)
  for label, rows in class_dict.items():
    for row in rows:
      if not 0 <= int(row) < num_images or labels[int(row)] is not None:
        raise ValueError(
          f'image {row} of class {printable(to_text(label))} in class_dict is'
          f' listed twice or not one of the {num_images} images'
        )
      labels[int(row)] = to_text(label)
  if None in labels:
    raise ValueError('images without a class in class_dict')
  return labels.astype(str)


class ByteRange(NamedTuple):
  """The location of a byte string in a pickle.

  Attributes:
    path: the pickle.
    start: offset in the file, in bytes.
    size: length in the file, in bytes.
    is_text: the bytes are stored as UTF-8 text with one character per byte, as
      Python 3 stores bytes in protocol 2.
  """

  path: Path
  start: int
  size: int
  is_text: bool

  def read(self) -> bytes:
    """Reads the byte string."""
    with open(self.path, 'rb') as file:
      file.seek(self.start)
      content = file.read(self.size)
    return content.decode().encode('latin1') if self.is_text else content


def find_byte_ranges(path: Path, prefix: bytes) -> list[ByteRange]:
  """Finds the byte strings in a pickle that begin with `prefix`, in order.

  The byte strings may be `bytes` objects or the contents of arrays. The file is
  scanned but no object is created, so that the file may be larger than memory
  and may contain arbitrary objects.

  Raises:
    UserError: the file is not a valid pickle.
  """
  ranges = []
  try:
    require_data(path)
    with open(path, 'rb') as file:
      for opcode, content, _ in pickletools.genops(file):
        is_text = 'BINUNICODE' in opcode.name
        if isinstance(content, str) and 'BIN' in opcode.name:
          matches = content.startswith(prefix.decode('latin1'))
        elif isinstance(content, bytes | bytearray):
          matches = content.startswith(prefix)
        else:
          continue
        if matches:
          if is_text and isinstance(content, str):
            content = content.encode()
          size = len(content)
          ranges.append(ByteRange(path, file.tell() - size, size, is_text))
  except Exception as error:  # a broken pickle can raise nearly anything
    raise UserError(f'cannot read the pickle {path}: {error}') from error
  return ranges


def _check_opcodes(file) -> None:
  """Raises UserError for unneeded opcodes and oversized memo indices."""
  size = os.fstat(file.fileno()).st_size
  for opcode, content, _ in pickletools.genops(file):
    if opcode.name in _FORBIDDEN_OPCODES:
      raise UserError(f'opcode {opcode.name} is not allowed')
    if opcode.name in _MEMO_OPCODES and int(content or 0) > size:
      raise UserError(
        f'memo index {content} exceeds the file size of {size} bytes'
      )


class _Unpickler(pickle.Unpickler):
  """Resolves only the globals that are needed to rebuild arrays."""

  def find_class(self, module: str, name: str) -> Any:
    name = f'{module}.{name}'
    known = name.replace('numpy._core.', 'numpy.core.')  # renamed in NumPy 2
    if known not in _GLOBALS:
      raise UserError(
        f'global {printable(name)} is not allowed; only NumPy arrays are'
      )
    return _GLOBALS[known]


class _Array(np.ndarray):
  """An array that validates its pickled state.

  NumPy trusts the state and reads invalid memory if it is inconsistent. Here
  it may contain only plain numbers or a list of objects.
  """

  def __setstate__(self, state):
    *_, shape, dtype, fortran_order, content = state
    dtype = _to_numpy_dtype(dtype)
    if not all(type(n) is int and 0 <= n < 2**40 for n in shape):
      raise UserError(f'invalid array shape {printable(shape)}')
    num_elements = math.prod(shape)
    kind = list if dtype.hasobject else bytes
    size = num_elements if dtype.hasobject else num_elements * dtype.itemsize
    if isinstance(content, str):  # bytes of Python 2
      content = content.encode('latin1')
    if not isinstance(content, kind) or len(content) != size:
      raise UserError(
        f'data of an array of shape {printable(shape)} has the wrong type or'
        ' size'
      )
    valid: Any = 1, shape, dtype, bool(fortran_order), content
    super().__setstate__(valid)


class _DType:
  """A pickled dtype whose byte order is set after its creation."""

  __slots__ = ('_code', '_order')

  def __init__(self, code, *_):
    self._code = str(code)
    self._order: Literal['<', '>', '|', '='] = '='
    if not re.fullmatch(r'[biufSUO]\d{0,6}', self._code):
      raise UserError(f'dtype {printable(code)} is not supported')

  def __setstate__(self, state):
    self._order = state[1]
    if self._order not in ('<', '>', '|', '='):
      raise UserError('invalid byte order of a dtype')

  def to_numpy(self) -> np.dtype:
    """Returns the NumPy dtype."""
    return np.dtype(self._code).newbyteorder(self._order)


class _Callable:
  """A function that a pickle can call but not modify."""

  __slots__ = ('_function',)

  def __init__(self, function):
    self._function = function

  def __call__(self, *args):
    return self._function(*args)

  def __setstate__(self, _):
    raise UserError('setting the state of a function is not allowed')


def _to_numpy_dtype(dtype: Any) -> np.dtype:
  if not isinstance(dtype, _DType):
    raise UserError('array with an invalid dtype')
  return dtype.to_numpy()


def _reconstruct(array_type: Any, shape: Any, code: Any) -> np.ndarray:
  """Returns an empty array whose state is set afterwards."""
  if array_type is not _NDARRAY or shape != (0,):
    raise UserError(f'invalid initial array of shape {printable(shape)}')
  return _Array((0,), np.uint8)


def _from_buffer(buffer, dtype, shape, order='C') -> np.ndarray:
  if not isinstance(buffer, bytes | bytearray) or order not in ('C', 'F'):
    raise UserError('array with an invalid buffer or order')
  dtype = _to_numpy_dtype(dtype)
  return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _scalar(dtype, content) -> np.generic:
  if isinstance(content, str):  # bytes of Python 2
    content = content.encode('latin1')
  dtype = _to_numpy_dtype(dtype)
  if not isinstance(content, bytes) or len(content) != dtype.itemsize:
    raise UserError('data of a scalar has the wrong type or size')
  return np.frombuffer(content, dtype)[0]


def _forbid_call(*_):
  raise UserError('calling numpy.ndarray is not allowed')


def _encode(text: str, encoding: str) -> bytes:
  """Rebuilds bytes as Python 3 stores them in protocol 2."""
  if encoding != 'latin1':
    raise UserError(
      f'encoding {printable(encoding)} is not allowed; only latin1 is'
    )
  return text.encode('latin1')


_NDARRAY = _Callable(_forbid_call)
_GLOBALS = {
  'numpy.dtype': _Callable(_DType),
  'numpy.ndarray': _NDARRAY,
  'numpy.core.multiarray._reconstruct': _Callable(_reconstruct),
  'numpy.core.multiarray.scalar': _Callable(_scalar),
  'numpy.core.numeric._frombuffer': _Callable(_from_buffer),
  '_codecs.encode': _Callable(_encode),
}
# Other ways to call and import, and to share memory.
_FORBIDDEN_OPCODES = frozenset(
  'INST OBJ NEWOBJ NEWOBJ_EX EXT1 EXT2 EXT4 PERSID BINPERSID NEXT_BUFFER'
  ' READONLY_BUFFER DUP'.split()
)
_MEMO_OPCODES = frozenset('PUT BINPUT LONG_BINPUT'.split())
