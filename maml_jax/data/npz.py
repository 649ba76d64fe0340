"""Reader for single rows of an array in an .npz file."""

import zipfile
from pathlib import Path

import numpy as np

from maml_jax.data.file_kinds import require_data
from maml_jax.utils.errors import UserError

__all__ = ['RowReader']

_LOCAL_HEADER_BYTES = 30  # of a zip entry, before its name and extra field


class RowReader:
  """Reads rows of one array of an .npz file without loading the whole array.

  An uncompressed array (`np.savez`) is memory-mapped. A compressed array
  (`np.savez_compressed`) is decompressed up to the requested row, which is fast
  if rows are read in ascending order; only one row is in memory at a time.

  Args:
    path: the .npz file.
    name: the name of the array.

  Attributes:
    shape: the shape of the array.
    dtype: the dtype of the array; never object, which would need pickle.

  Raises:
    UserError: there is no such array, or its format is not supported.
  """

  def __init__(self, path: Path, name: str):
    try:
      self._open(path, f'{name}.npy')
    except Exception as error:  # broken files can raise nearly anything
      raise UserError(f'cannot read {name!r} of {path}: {error}') from error

  def _open(self, path: Path, member: str) -> None:
    require_data(path)
    archive = zipfile.ZipFile(path)
    stream = archive.open(member)
    version = np.lib.format.read_magic(stream)
    read_header = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    self.shape, fortran_order, self.dtype = read_header(stream)
    if fortran_order or self.dtype.hasobject:
      raise ValueError('expected an array of numbers in C order')
    start, entry = stream.tell(), archive.getinfo(member)
    if entry.compress_type == zipfile.ZIP_STORED:
      with open(path, 'rb') as file:
        file.seek(entry.header_offset)
        header = file.read(_LOCAL_HEADER_BYTES)
      lengths = int.from_bytes(header[26:28], 'little')
      lengths += int.from_bytes(header[28:30], 'little')
      start += entry.header_offset + _LOCAL_HEADER_BYTES + lengths
      self._array = np.memmap(path, self.dtype, 'r', start, self.shape)
    else:
      self._array, self._stream, self._start = None, stream, start

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, i: int) -> np.ndarray:
    if self._array is not None:
      return self._array[i]
    size = int(np.prod(self.shape[1:])) * self.dtype.itemsize
    self._stream.seek(self._start + i * size)
    return np.frombuffer(self._stream.read(size), self.dtype).reshape(
      self.shape[1:]
    )
