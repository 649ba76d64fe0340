"""Rows of an array in an .npz file, without loading the array."""

import zipfile
from pathlib import Path

import numpy as np

from maml_jax.utils.errors import UserError

_LOCAL_HEADER = 30  # bytes of a zip entry before its name and extra field


class Rows:
  """Reads row after row of one member of an .npz file.

  A member that is stored as it is (`np.savez`) is memory-mapped. A compressed
  one (`np.savez_compressed`) is decompressed as far as the row: cheap if rows
  are asked for in their order, and never more than one of them in memory.

  Attributes:
    shape: of the array.
    dtype: of the array; never objects, which would be a pickle.

  Raises:
    UserError: there is no such member, or it is no plain array.
  """

  def __init__(self, path: Path, member: str):
    try:
      self._open(path, f'{member}.npy')
    except Exception as error:  # Broken files can raise nearly anything.
      raise UserError(f'cannot read {member!r} of {path}: {error}') from error

  def _open(self, path: Path, member: str) -> None:
    archive = zipfile.ZipFile(path)
    stream = archive.open(member)
    version = np.lib.format.read_magic(stream)
    read_header = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    self.shape, by_column, self.dtype = read_header(stream)
    if by_column or self.dtype.hasobject:
      raise ValueError('it should be a plain array in C order')
    start, entry = stream.tell(), archive.getinfo(member)
    if entry.compress_type == zipfile.ZIP_STORED:
      with open(path, 'rb') as file:
        file.seek(entry.header_offset)
        header = file.read(_LOCAL_HEADER)
      lengths = int.from_bytes(header[26:28], 'little')
      lengths += int.from_bytes(header[28:30], 'little')
      start += entry.header_offset + _LOCAL_HEADER + lengths
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
