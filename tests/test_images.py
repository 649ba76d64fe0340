"""Images from anywhere: brought to one form, or refused with the reason."""

import io
import os
import pathlib
import struct
import warnings
import zlib

import image_folders
import numpy as np
import pytest
from PIL import Image

from maml_jax import data
from maml_jax.data import images
from maml_jax.utils.errors import UserError

INK, COLOR = data.spec('omniglot'), data.spec('folder')


def save(path, image, **kwargs) -> pathlib.Path:
  image.save(path, **kwargs)
  return path


def test_images_of_the_data_sets_are_not_changed():
  image = data.load_dataset('glyphs', 'test').images[::25]
  for pixels in image:
    np.testing.assert_array_equal(
      images.from_array(pixels, data.spec('glyphs')), pixels
    )


@pytest.mark.parametrize('paper', [255, 200, 120])
def test_ink_becomes_light_on_black(paper):
  drawn = np.full((40, 40), paper, np.uint8)
  drawn[10:30, 18:22] = 20
  pixels = images.from_array(drawn, INK)
  light = images.from_array(255 - drawn, INK)
  np.testing.assert_array_equal(pixels, light)
  assert np.median(pixels[0]) == 0 and pixels[14, 14, 0] > 200
  color = images.from_array(drawn, COLOR)
  assert color[42, 42].tolist() == [20, 20, 20]  # photographs stay as they are


@pytest.mark.parametrize('shape', [(84, 84), (84, 84, 1), (84, 84, 3)])
def test_arrays_of_any_kind_of_number(shape):
  pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  expected = images.from_array(pixels, COLOR)
  assert expected.shape == (84, 84, 3)
  np.testing.assert_array_equal(
    expected, np.broadcast_to(pixels.reshape(84, 84, -1), (84, 84, 3))
  )
  for kind in (np.float32, np.float64):
    image = (pixels / 255).astype(kind)
    np.testing.assert_array_equal(images.from_array(image, COLOR), expected)
  mask = pixels > 127
  np.testing.assert_array_equal(
    images.from_array(mask, COLOR),
    images.from_array(255 * np.uint8(mask), COLOR),
  )


@pytest.mark.parametrize(
  'image, message',
  [
    (np.zeros((4, 4, 2), np.uint8), r'C = 1, 3 or 4, not \(4, 4, 2\)'),
    (np.zeros(4, np.uint8), r'not \(4,\)'),
    (np.zeros((0, 4), np.uint8), 'has no pixels'),
    (np.full((4, 4), 2.0), r'floats 0..1, not float64 2..2'),
    (np.full((4, 4), -0.1), 'floats 0..1'),
    (np.full((4, 4), np.nan), 'floats 0..1'),
    (np.full((4, 4), 200, np.int64), 'floats 0..1, not int64'),
  ],
)
def test_what_is_no_image(image, message):
  with pytest.raises(UserError, match=message):
    images.from_array(image, COLOR)


@pytest.mark.parametrize('suffix', image_folders.SUFFIXES)
def test_formats_and_colours(tmp_path, suffix):
  picture = image_folders.picture('frame', 1)
  expected = images.to_array(picture, COLOR).astype(float)
  for mode in ('RGB', 'L', 'P', 'CMYK'):
    try:
      path = save(tmp_path / f'{mode}.{suffix}', picture.convert(mode))
    except (OSError, ValueError):
      continue  # such a format has no such mode
    read = images.read_image(path, COLOR)
    assert np.abs(read.pixels - expected).mean() < 8
    assert read.path == path and read.thumbnail.shape == (48, 60, 3)


def test_what_is_transparent_is_white_paper(tmp_path):
  picture = Image.new('RGBA', (84, 84), (0, 0, 0, 0))
  picture.paste((0, 0, 0, 255), (20, 20, 40, 40))
  for image in (picture, picture.convert('LA')):
    read = images.read_image(save(tmp_path / 'a.png', image), COLOR)
    assert read.pixels[0, 0].tolist() == [255] * 3
    assert read.pixels[30, 30].tolist() == [0] * 3
    assert read.thumbnail[0, 0].tolist() == [255] * 3


def test_16_bits_are_scaled_not_cut(tmp_path):
  grey = np.full((84, 84), 300 << 6, np.uint16)
  path = save(tmp_path / 'a.png', Image.fromarray(grey))
  assert (images.read_image(path, COLOR).pixels == (300 << 6) >> 8).all()


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_turns_an_image_as_a_camera_was_held(tmp_path, orientation):
  """The stored image is brought upright by the standard's own table."""
  stored = np.random.default_rng(0).integers(0, 256, (84, 84, 3), np.uint8)
  exif = Image.Exif()
  exif[0x0112] = orientation
  path = save(tmp_path / 'a.png', Image.fromarray(stored), exif=exif)
  # TIFF 6.0, page 36: where row 0 and column 0 of what is stored are to lie.
  rows, columns = {
    1: ('top', 'left'),
    2: ('top', 'right'),
    3: ('bottom', 'right'),
    4: ('bottom', 'left'),
    5: ('left', 'top'),
    6: ('right', 'top'),
    7: ('right', 'bottom'),
    8: ('left', 'bottom'),
  }[orientation]
  upright = stored
  if rows in ('left', 'right'):
    upright = upright.swapaxes(0, 1)
    rows, columns = columns, rows
  if rows == 'bottom':
    upright = upright[::-1]
  if columns == 'right':
    upright = upright[:, ::-1]
  np.testing.assert_array_equal(images.read_image(path, COLOR).pixels, upright)


def hostile_exif() -> bytes:
  """A directory of entries that point to each other and beyond the end."""
  entry = struct.pack('<HHII', 0x8769, 4, 0xFFFFFFFF, 8)
  return b'Exif\0\0II*\0\x08\0\0\0' + struct.pack('<H', 60000) + 40 * entry


@pytest.mark.parametrize('exif', [hostile_exif(), b'Exif\0\0garbage', b'x'])
def test_broken_exif_is_passed_over(tmp_path, exif):
  path = save(tmp_path / 'a.jpg', image_folders.picture('bar', 0), exif=exif)
  plain = save(tmp_path / 'b.jpg', image_folders.picture('bar', 0))
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    pixels = images.read_image(path, COLOR).pixels
  np.testing.assert_array_equal(pixels, images.read_image(plain, COLOR).pixels)
  assert not caught


def bomb(width: int, height: int) -> bytes:
  """A PNG that says it is of this size, and has no pixels."""

  def chunk(name, content):
    check = struct.pack('>I', zlib.crc32(name + content))
    return struct.pack('>I', len(content)) + name + content + check

  head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  body = chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(b''))
  return b'\x89PNG\r\n\x1a\n' + body + chunk(b'IEND', b'')


def png_with(text_bytes: int) -> bytes:
  """A PNG with a compressed text that is larger than any text."""
  buffer = io.BytesIO()
  image_folders.picture('bar', 0).save(buffer, 'png')
  content = b'a\0\0' + zlib.compress(bytes(text_bytes), 9)
  chunk = b'zTXt' + content
  chunk = struct.pack('>I', len(content)) + chunk
  chunk += struct.pack('>I', zlib.crc32(chunk[4:]))
  whole = buffer.getvalue()
  return whole[:33] + chunk + whole[33:]


UNREADABLE = {
  'empty': (b'', 'empty'),
  'text': (b'this is no image', 'not an image'),
  'program': (b'\x7fELF' + bytes(100), 'not an image'),
  'bomb': (bomb(60000, 60000), 'too many'),
  'lesser bomb': (bomb(13000, 12000), '13000 x 12000 pixels are too many'),
  'no pixels': (bomb(100, 100), 'broken: '),
  'text bomb': (png_with(300_000_000), 'broken: Decompressed data too large'),
  'svg': (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'not an image'),
}


@pytest.mark.parametrize('name', UNREADABLE)
def test_what_cannot_be_read_says_why(tmp_path, name):
  content, reason = UNREADABLE[name]
  path = tmp_path / 'a.jpg'
  path.write_bytes(content)
  with pytest.raises(images.UnreadableImageError, match=f'^{reason}'):
    images.read_image(path, COLOR)


def test_cut_files_and_files_that_are_gone(tmp_path):
  whole = save(
    tmp_path / 'a.jpg', image_folders.picture('disc', 0)
  ).read_bytes()
  (tmp_path / 'a.jpg').write_bytes(whole[: len(whole) // 2])
  with pytest.raises(
    images.UnreadableImageError, match='broken: .*[Tt]runcated'
  ):
    images.read_image(tmp_path / 'a.jpg', COLOR)
  with pytest.raises(images.UnreadableImageError, match='No such file'):
    images.read_image(tmp_path / 'b.jpg', COLOR)


def test_pixels_of_no_range_and_files_of_no_end(tmp_path, monkeypatch):
  grey = Image.fromarray(np.full((9, 9), 1e6, np.float32))
  path = save(tmp_path / 'a.tif', grey)
  with pytest.raises(images.UnreadableImageError, match='no range is known'):
    images.read_image(path, COLOR)
  monkeypatch.setattr(images, 'MAX_BYTES', 1 << 20)
  with open(path, 'ab') as file:
    file.truncate(2 << 20)
  with pytest.raises(images.UnreadableImageError, match='larger than 1 MB'):
    images.read_image(path, COLOR)


def test_finds_files_at_any_depth_and_no_others(tmp_path):
  for name in (
    'cat/b.jpg',
    'cat/more/a.jpg',
    'cat/.hidden',
    'dog/a.png',
    '.git/x/y',
    '__MACOSX/a',
    'beside.txt',
  ):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  os.mkfifo(tmp_path / 'dog' / 'pipe.jpg')
  (tmp_path / 'cat' / 'round').symlink_to(tmp_path)
  (tmp_path / 'dog' / 'nowhere.jpg').symlink_to(tmp_path / 'gone')
  classes, beside = images.class_folders(tmp_path)
  assert list(classes) == ['cat', 'dog']
  cat = [str(path.relative_to(tmp_path)) for path in classes['cat']]
  assert cat == ['cat/b.jpg', 'cat/more/a.jpg']
  assert classes['dog'] == [tmp_path / 'dog' / 'a.png']
  assert beside == [tmp_path / 'beside.txt']
