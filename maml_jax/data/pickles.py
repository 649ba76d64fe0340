"""Reading pickles that hold NumPy arrays, and nothing that could run code."""

import pickle
from pathlib import Path
from typing import Any

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
