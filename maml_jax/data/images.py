"""Images from anywhere, as a network takes those of its data set.

They are not trusted: what cannot be read, or is too large, is refused with the
reason, whatever the decoder says to it.
"""

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from maml_jax.data import records
from maml_jax.utils.errors import UserError

FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'TIFF', 'WEBP')  # others run programs
MAX_BYTES = 256 << 20  # of one file
MAX_PIXELS = 150_000_000  # of one image; the largest cameras have fewer
THUMBNAIL_SIZE = 112  # pixels, the longer side


class Picture(NamedTuple):
  """One image file that was read.

  Attributes:
    path: of the file, as it was given.
    pixels: uint8 [H, W, C], as the data set has them, see `to_array`.
    thumbnail: uint8 [h, w, 3], as people see it.
    digest: the same for files of the same content.
  """

  path: Path
  pixels: np.ndarray
  thumbnail: np.ndarray
  digest: str


class UnreadableImageError(ValueError):
  """A file that is no image, is broken or too large; says why."""


def files_below(folder: Path) -> list[Path]:
  """The regular files under a folder, at any depth, sorted, hidden ones apart.

  Links are followed, none upwards or in a circle. What is neither a file nor a
  folder, a pipe for example, is left out.
  """
  found, seen = [], {*map(str, Path(os.path.realpath(folder)).parents)}
  for place, folders, files in os.walk(folder, followlinks=True):
    real = os.path.realpath(place)
    folders[:] = [f for f in folders if not f.startswith('.')]
    if real in seen:
      folders.clear()
      continue
    seen.add(real)
    paths = (Path(place, name) for name in files if not name.startswith('.'))
    found += [path for path in paths if path.is_file()]
  return sorted(found)


def class_folders(
  folder: Path,
) -> tuple[dict[str, list[Path]], list[Path]]:
  """The files of each folder in a folder, and those that lie in none.

  Returns:
    Files by name of the class, sorted; and the files beside the classes.
  """
  classes, beside = {}, []
  for path in sorted(folder.iterdir()):
    if path.name.startswith(('.', '__MACOSX')):
      continue
    if path.is_dir():
      classes[path.name] = files_below(path)
    elif path.is_file():
      beside.append(path)
  return classes, beside


def read_image(path: Path, spec: records.DatasetSpec) -> Picture:
  """Reads an image file of any format that Pillow knows.

  It is turned as its EXIF data say, if they can be read.

  Args:
    path: of the file.
    spec: of the data set that it is to be like.

  Raises:
    Unreadable: it cannot be read.
  """
  try:
    if path.stat().st_size > MAX_BYTES:
      raise UnreadableImageError(f'larger than {MAX_BYTES >> 20} MB')
    encoded = path.read_bytes()
    with open_image(encoded) as image:
      pixels = to_array(image, spec)
      image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
      thumbnail = np.asarray(_opaque(image, 'RGB'))
  except UnreadableImageError:
    raise
  except MemoryError as error:
    raise UnreadableImageError('takes more memory than there is') from error
  except Exception as error:  # Broken files can raise nearly anything.
    raise UnreadableImageError(_reason(error, path)) from error
  return Picture(path, pixels, thumbnail, hashlib.sha256(encoded).hexdigest())


@contextlib.contextmanager
def open_image(encoded: bytes) -> Iterator:
  """Opens an image with Pillow, turned as its EXIF data say.

  Raises:
    Unreadable: it has too many pixels.
  """
  from PIL import Image, ImageOps

  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # what is wrong comes up as an error
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
      if image.width * image.height > MAX_PIXELS:
        raise UnreadableImageError(
          f'{image.width} x {image.height} pixels are too many'
        )
      with contextlib.suppress(Exception):  # EXIF can be broken in any way
        image = ImageOps.exif_transpose(image)
      yield image


def from_array(image: np.ndarray, spec: records.DatasetSpec) -> np.ndarray:
  """Brings one image to the size and the channels of a data set.

  Args:
    image: [H, W] or [H, W, C] of any size, C = 1, 3, or 4 with transparency;
      uint8 0..255, or floats or booleans 0..1.
    spec: of the data set.

  Returns:
    uint8 [H, W, C] of the data set, see `to_array`.

  Raises:
    UserError: it is no such array.
  """
  from PIL import Image

  image = np.asarray(image)
  if image.ndim == 3 and image.shape[-1] == 1:
    image = image[..., 0]
  channels = image.shape[2:]
  if image.ndim not in (2, 3) or channels not in ((), (3,), (4,)):
    raise UserError(
      f'an image is [H, W] or [H, W, C] with C = 1, 3 or 4, not {image.shape}'
    )
  if not image.size:
    raise UserError(f'an image of shape {image.shape} has no pixels')
  if image.dtype != np.uint8:
    image = _to_uint8(image)
  return to_array(Image.fromarray(image), spec)


def to_array(image, spec: records.DatasetSpec) -> np.ndarray:
  """Brings an image of PIL to the size and the channels of a data set.

  What is transparent becomes white. Of a data set of ink, light on black, the
  ground is made black: an image whose border is lighter than its mean is
  inverted, and the median of its border is taken off. What was drawn like that
  already is not changed.

  Args:
    image: of any size and mode.
    spec: of the data set.

  Returns:
    uint8 [H, W, C], 0..255.
  """
  pixels = resize(image, spec)
  return _light_on_black(pixels) if spec.light_on_dark else pixels


def resize(image, spec: records.DatasetSpec) -> np.ndarray:
  """`to_array`, but that dark and light stay as they are."""
  from PIL import Image

  height, width, channels = spec.image_shape
  image = _opaque(image, 'L' if channels == 1 else 'RGB')
  if image.size != (width, height):
    image = image.resize((width, height), Image.Resampling.BILINEAR)
  return np.asarray(image).reshape(spec.image_shape)


def _opaque(image, mode: str):
  """An image of PIL in mode 'L' or 'RGB'; what is transparent becomes white."""
  from PIL import Image

  if image.mode.startswith('I;16'):  # PIL would cut at 255
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.mode in ('I', 'F'):
    raise UnreadableImageError(
      'its pixels have 32 bits, of which no range is known'
    )
  if image.has_transparency_data:
    image = image.convert('RGBA')
    paper = Image.new('RGBA', image.size, 'white')
    image = Image.alpha_composite(paper, image)
  return image.convert(mode)


def _reason(error: Exception, path: Path) -> str:
  from PIL import Image, UnidentifiedImageError

  if isinstance(error, UnidentifiedImageError):
    return 'empty' if not path.stat().st_size else 'not an image'
  if isinstance(error, Image.DecompressionBombError):
    return 'too many pixels'
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return f'broken: {str(error).partition(chr(10))[0][:100]}'


def _to_uint8(image: np.ndarray) -> np.ndarray:
  values = image.astype(np.float32)
  low, high = values.min(), values.max()
  if not (low >= 0 and high <= 1):  # so for NaN, too
    raise UserError(
      f'images are uint8 0..255 or floats 0..1, not {image.dtype} '
      f'{low:.3g}..{high:.3g}'
    )
  return np.rint(255 * values).astype(np.uint8)


def _light_on_black(pixels: np.ndarray) -> np.ndarray:
  """Ink of any image, light on a ground that is black."""
  edges = pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]
  ground = np.median(np.concatenate(edges))
  if ground > pixels.mean():
    pixels, ground = 255 - pixels, 255 - ground
  if not ground:
    return pixels
  light = np.maximum(pixels - ground, 0) * (255 / max(255 - ground, 1))
  return np.rint(light).astype(np.uint8)
