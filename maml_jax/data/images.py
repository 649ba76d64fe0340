"""Images from arbitrary sources, converted to the format of a data set.

The files are not trusted: unreadable and oversized ones raise
UnreadableImageError with a short reason.
"""

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from maml_jax.data import records
from maml_jax.data.file_kinds import describe_non_data
from maml_jax.data.folder_layout import is_junk
from maml_jax.utils.errors import UserError

if TYPE_CHECKING:
  from PIL import Image

__all__ = [
  'Picture',
  'UnreadableImageError',
  'describe_error',
  'from_array',
  'from_pil',
  'list_class_folders',
  'list_files',
  'open_image',
  'read_image',
  'resize',
  'to_array',
  'to_uint8',
]

# Pillow runs external programs for some other formats.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'TIFF', 'WEBP')
MAX_BYTES = 256 << 20  # per file
MAX_PIXELS = 150_000_000  # per image; more than the largest cameras have
CHANNELS = (1, 3, 4)  # of arrays
THUMBNAIL_SIZE = 112  # longer side, in pixels


class Picture(NamedTuple):
  """The content of one image file.

  Attributes:
    path: the path of the file, as given.
    pixels: uint8 [H, W, C] in the format of the data set, see `to_array`.
    thumbnail: uint8 [h, w, 3], for display.
    digest: SHA-256 of the file.
  """

  path: Path
  pixels: np.ndarray
  thumbnail: np.ndarray
  digest: str


class UnreadableImageError(ValueError):
  """A file is not an image, is broken or is too large; states the reason."""


def list_files(folder: Path) -> list[Path]:
  """Lists the regular files under a folder, at any depth, sorted.

  Omits hidden files and those of the system, see `is_junk`, and everything that
  is neither a file nor a folder, such as pipes. Follows symbolic links, except
  those that lead to a parent folder or to a folder that was already visited.
  """
  found, seen = [], {*map(str, Path(os.path.realpath(folder)).parents)}
  for current, folders, files in os.walk(folder, followlinks=True):
    real = os.path.realpath(current)
    folders[:] = [f for f in folders if not is_junk(f)]
    if real in seen:
      folders.clear()
      continue
    seen.add(real)
    paths = (Path(current, name) for name in files if not is_junk(name))
    found += [path for path in paths if path.is_file()]
  return sorted(found)


def list_class_folders(
  folder: Path,
) -> tuple[dict[str, list[Path]], list[Path]]:
  """Lists the files of each class folder in a folder.

  Returns:
    The files of each class by class name, sorted; and the files that are not in
    a class folder.
  """
  classes, other_files = {}, []
  for path in sorted(folder.iterdir()):
    if is_junk(path.name):
      continue
    if path.is_dir():
      classes[path.name] = list_files(path)
    elif path.is_file():
      other_files.append(path)
  return classes, other_files


def read_image(
  path: Path, spec: records.DatasetSpec, max_pixels: int = MAX_PIXELS
) -> Picture:
  """Reads an image file and applies its EXIF orientation, if it is valid.

  Args:
    path: the file, in one of `FORMATS`.
    spec: the data set whose image format is needed.
    max_pixels: the largest width times height; larger images are not decoded.

  Raises:
    UnreadableImageError: the file cannot be read.
  """
  try:
    if path.stat().st_size > MAX_BYTES:
      raise UnreadableImageError(f'larger than {MAX_BYTES >> 20} MB')
    encoded = path.read_bytes()
    with open_image(encoded, max_pixels) as image:
      pixels = to_array(image, spec)
      image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
      thumbnail = np.asarray(_convert_mode(image, 'RGB'))
  except Exception as error:  # broken files can raise nearly anything
    raise UnreadableImageError(describe_error(error)) from error
  return Picture(path, pixels, thumbnail, hashlib.sha256(encoded).hexdigest())


@contextlib.contextmanager
def open_image(encoded: bytes, max_pixels: int = MAX_PIXELS) -> Iterator:
  """Opens an image with Pillow and applies its EXIF orientation, if valid.

  Raises:
    UnreadableImageError: it is not an image or has too many pixels.
  """
  from PIL import Image, UnidentifiedImageError  # saves start-up time

  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # problems that matter raise errors
    try:
      image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except UnidentifiedImageError as error:
      reason = describe_non_data(encoded) or 'not an image'
      raise UnreadableImageError(reason) from error
    except Image.DecompressionBombError as error:
      raise UnreadableImageError(f'too many pixels: {error}') from error
    with image:
      yield _apply_orientation(image, max_pixels)


def describe_error(error: Exception) -> str:
  """Returns a short reason why an image cannot be read."""
  if isinstance(error, UserError | UnreadableImageError):
    return str(error)
  if isinstance(error, MemoryError):
    return 'not enough memory'
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return f'broken: {str(error).partition(chr(10))[0][:100]}'


def from_pil(image: 'Image.Image', spec: records.DatasetSpec) -> np.ndarray:
  """Converts a PIL image as `read_image` converts its file.

  Args:
    image: a PIL image of any size and mode, which stays unchanged.
    spec: the data set whose image format is needed.

  Returns:
    uint8 [H, W, C] with the shape of the data set's images, see `to_array`.

  Raises:
    UserError: the image is too large, or its file is broken.
  """
  try:
    return to_array(_apply_orientation(image), spec)
  except Exception as error:  # broken files can raise nearly anything
    raise UserError(f'invalid image: {describe_error(error)}') from error


def _apply_orientation(image, max_pixels: int = MAX_PIXELS):
  """Checks the size of a PIL image and applies its EXIF orientation."""
  from PIL import ImageOps  # saves start-up time

  if image.width * image.height > max_pixels:
    raise UnreadableImageError(
      f'too many pixels: {image.width} x {image.height}'
    )
  with contextlib.suppress(Exception):  # broken EXIF data
    return ImageOps.exif_transpose(image)
  return image


def from_array(image: np.ndarray, spec: records.DatasetSpec) -> np.ndarray:
  """Converts an array to an image in the format of a data set.

  Args:
    image: [H, W] or [H, W, C] of any size; C = 1, 3, or 4 with transparency;
      integers 0..255, uint16 0..65535, or floats or booleans 0..1.
    spec: the data set whose image format is needed.

  Returns:
    uint8 [H, W, C] with the shape of the data set's images, see `to_array`.

  Raises:
    UserError: the shape, dtype or value range is invalid.
  """
  from PIL import Image  # saves start-up time

  image = np.asarray(image)
  shape = image.shape
  if not image.size:
    raise UserError(f'image of shape {shape} has no pixels')
  is_gray, has_channels = image.ndim == 2, image.ndim == 3
  if is_gray and shape[1] in CHANNELS and shape[0] != shape[1]:
    raise UserError(
      f'expected an image [H, W] or [H, W, C], got shape {shape}, which looks '
      'like a row of pixels: pass whole images'
    )
  if not is_gray and not (has_channels and shape[-1] in CHANNELS):
    hint = ''
    if has_channels and shape[0] in CHANNELS:
      hint = ': the channels must come last'
    raise UserError(
      'expected an image [H, W] or [H, W, C] with C = 1, 3 or 4, got shape '
      f'{shape}{hint}'
    )
  image = to_uint8(image)
  if has_channels and shape[-1] == 1:
    image = image[..., 0]
  return to_array(Image.fromarray(image), spec)


def to_array(image: 'Image.Image', spec: records.DatasetSpec) -> np.ndarray:
  """Converts a PIL image to the size and channels of a data set.

  Transparent pixels become white. For a data set of light ink on black
  (`spec.light_on_dark`), an image whose border is lighter than its mean is
  inverted, and the median of the border is subtracted so that the background
  is black. Images that are light on black already stay unchanged.

  Args:
    image: a PIL image of any size and mode.
    spec: the data set whose image format is needed.

  Returns:
    uint8 [H, W, C], 0..255.
  """
  pixels = resize(image, spec)
  return _to_light_on_black(pixels) if spec.light_on_dark else pixels


def resize(image: 'Image.Image', spec: records.DatasetSpec) -> np.ndarray:
  """Converts a PIL image like `to_array`, but does not invert it."""
  from PIL import Image  # saves start-up time

  height, width, channels = spec.image_shape
  image = _convert_mode(image, 'L' if channels == 1 else 'RGB')
  if image.size != (width, height):
    image = image.resize((width, height), Image.Resampling.BILINEAR)
  return np.asarray(image).reshape(spec.image_shape)


def _convert_mode(image, mode: str):
  """Converts a PIL image to mode 'L' or 'RGB', on a white background."""
  from PIL import Image  # saves start-up time

  if image.mode.startswith('I;16'):  # Pillow would clip at 255
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.mode in ('I', 'F'):
    raise UnreadableImageError('32-bit pixels have no defined value range')
  if image.mode in ('LAB', 'La'):  # no direct conversions to other modes
    image = image.convert({'LAB': 'RGB', 'La': 'LA'}[image.mode])
  if image.has_transparency_data:
    image = image.convert('RGBA')
    background = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(background, image)
  return image.convert(mode)


def to_uint8(image: np.ndarray) -> np.ndarray:
  """Converts an array of pixels to uint8 0..255.

  Args:
    image: integers 0..255, uint16 0..65535, or floats or booleans 0..1.

  Raises:
    UserError: other values or types.
  """
  if image.dtype == np.uint8:
    return image
  if image.dtype == np.uint16:  # as in files
    return (image >> 8).astype(np.uint8)
  is_integer = image.dtype.kind in 'iu'
  limit = 255 if is_integer else 1
  try:
    values = image.astype(np.float64)
  except (TypeError, ValueError) as error:
    raise UserError(f'expected numbers, got dtype {image.dtype}') from error
  low, high = values.min(), values.max()
  if not (low >= 0 and high <= limit):  # also true for NaN
    raise UserError(
      f'expected integers in 0..255 or floats in 0..1, got {image.dtype} in '
      f'{low:.3g}..{high:.3g}'
    )
  return np.rint(255 / limit * values).astype(np.uint8)


def _to_light_on_black(pixels: np.ndarray) -> np.ndarray:
  """Returns an image of ink as light ink on a black background."""
  edges = pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]
  background = np.median(np.concatenate(edges))
  if background > pixels.mean():
    pixels, background = 255 - pixels, 255 - background
  if not background:
    return pixels
  ink = np.maximum(pixels - background, 0) * (255 / max(255 - background, 1))
  return np.rint(ink).astype(np.uint8)
