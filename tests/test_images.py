"""Images from arbitrary sources are converted or rejected with a reason."""

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


def test_from_array_keeps_images_of_the_dataset_unchanged(glyphs):
  stack = data.load_dataset('glyphs', 'test', glyphs).images[::25]
  for pixels in stack:
    np.testing.assert_array_equal(
      images.from_array(pixels, data.spec('glyphs')), pixels
    )


@pytest.mark.parametrize('background', [255, 200, 120])
def test_ink_is_converted_to_light_on_black(background):
  drawn = np.full((40, 40), background, np.uint8)
  drawn[10:30, 18:22] = 20
  pixels = images.from_array(drawn, INK)
  light = images.from_array(255 - drawn, INK)
  np.testing.assert_array_equal(pixels, light)
  assert np.median(pixels[0]) == 0 and pixels[14, 14, 0] > 200
  color = images.from_array(drawn, COLOR)
  assert color[42, 42].tolist() == [20, 20, 20]  # photographs are not inverted


@pytest.mark.parametrize('shape', [(84, 84), (84, 84, 1), (84, 84, 3)])
def test_from_array_accepts_uint8_float_and_bool(shape):
  pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  expected = images.from_array(pixels, COLOR)
  assert expected.shape == (84, 84, 3)
  np.testing.assert_array_equal(
    expected, np.broadcast_to(pixels.reshape(84, 84, -1), (84, 84, 3))
  )
  wide = pixels.astype(np.uint16) << 8  # as in files of 16 bits
  for image in (pixels.astype(np.int64), pixels.astype(np.uint32), wide):
    np.testing.assert_array_equal(images.from_array(image, COLOR), expected)
  for dtype in (np.float32, np.float64):
    image = (pixels / 255).astype(dtype)
    np.testing.assert_array_equal(images.from_array(image, COLOR), expected)
  mask = pixels > 127
  np.testing.assert_array_equal(
    images.from_array(mask, COLOR),
    images.from_array(255 * np.uint8(mask), COLOR),
  )


@pytest.mark.parametrize(
  'image, message',
  [
    (np.zeros((4, 4, 2), np.uint8), r'C = 1, 3 or 4, got shape \(4, 4, 2\)'),
    (np.zeros(4, np.uint8), r'got shape \(4,\)'),
    (np.zeros((0, 4), np.uint8), 'has no pixels'),
    (np.full((4, 4), 2.0), 'floats in 0..1, got float64 in 2..2'),
    (np.full((4, 4), -0.1), 'floats in 0..1'),
    (np.full((4, 4), np.nan), 'floats in 0..1'),
    (np.full((4, 4), 256, np.int64), 'integers in 0..255 .* got int64'),
    (np.full((4, 4), -1, np.int8), 'integers in 0..255 .* got int8 in -1..-1'),
    (np.full((4, 4), 'x'), 'expected numbers, got dtype <U1'),
    (np.zeros((3, 8, 8), np.uint8), 'the channels must come last'),
    (np.zeros((8, 3), np.uint8), r'\(8, 3\), which looks like a row of pixels'),
    (np.zeros((8, 1), np.uint8), 'which looks like a row of pixels'),
  ],
)
def test_from_array_with_invalid_array_raises_error(image, message):
  with pytest.raises(UserError, match=message):
    images.from_array(image, COLOR)


@pytest.mark.parametrize('suffix', image_folders.SUFFIXES)
def test_all_formats_and_color_modes_are_read(tmp_path, suffix):
  picture = image_folders.draw_picture('frame', 1)
  expected = images.to_array(picture, COLOR).astype(float)
  for mode in ('RGB', 'L', 'P', 'CMYK'):
    try:
      path = save(tmp_path / f'{mode}.{suffix}', picture.convert(mode))
    except (OSError, ValueError):
      continue  # the format does not support this mode
    read = images.read_image(path, COLOR)
    assert np.abs(read.pixels - expected).mean() < 8
    assert read.path == path and read.thumbnail.shape == (48, 60, 3)


# Modes of PIL images, with a format that keeps them in files. Pillow writes
# YCbCr as TIFF, but some of its versions do not read it back.
MODES = {
  '1': 'png',
  'L': 'png',
  'LA': 'png',
  'P': 'png',
  'PA': None,
  'RGB': 'png',
  'RGBA': 'png',
  'RGBX': None,
  'RGBa': None,
  'La': None,
  'CMYK': 'tiff',
  'YCbCr': None,
  'LAB': 'tiff',
  'HSV': None,
  'I;16': 'png',
  'I;16B': None,
}


@pytest.mark.parametrize('spec', [INK, COLOR], ids=['gray', 'color'])
@pytest.mark.parametrize('mode', MODES)
def test_pil_images_of_all_modes_are_converted_like_files(tmp_path, mode, spec):
  image = colored_image(mode)
  before = image.tobytes()
  pixels = images.from_pil(image, spec)
  assert image.tobytes() == before and image.mode == mode
  if MODES[mode]:
    file = save(tmp_path / f'image.{MODES[mode]}', image)
    np.testing.assert_array_equal(images.read_image(file, spec).pixels, pixels)
    with Image.open(file) as opened:
      np.testing.assert_array_equal(images.from_pil(opened, spec), pixels)
  if mode in ('P', 'PA', 'RGBX', 'RGBA', 'RGBa', 'HSV', 'YCbCr', 'CMYK'):
    true_colors = images.from_pil(colored_image('RGB'), spec)
    difference = np.abs(np.int32(pixels) - true_colors)
    assert difference.mean() < 4


def colored_image(mode):
  """Returns an image of 9 colors; palette indices do not resemble them."""
  r = np.random.RandomState(3)
  colors = r.randint(0, 256, (9, 3)).astype(np.uint8)
  index = np.kron(np.arange(9).reshape(3, 3), np.ones((20, 20), int))
  color = Image.fromarray(colors[index])
  if mode in ('P', 'PA'):
    image = Image.fromarray(index.astype(np.uint8))
    image.putpalette(colors.tobytes())
    return image if mode == 'P' else image.convert('PA')
  if mode.startswith('I;16'):
    gray = np.asarray(color.convert('L')).astype(
      '>u2' if 'B' in mode else '<u2'
    )
    return Image.frombytes(mode, color.size, (gray * 257).astype(gray.dtype))
  if mode == 'LAB':
    from PIL import ImageCms

    profiles = (ImageCms.createProfile(name) for name in ('sRGB', 'LAB'))
    return ImageCms.profileToProfile(color, *profiles, outputMode='LAB')
  if mode in ('La', 'RGBa'):
    return color.convert(mode.upper()).convert(mode)
  return color.convert(mode)


@pytest.mark.parametrize('mode', ['I', 'F'])
def test_pil_images_without_value_range_raise_error(mode):
  with pytest.raises(UserError, match='32-bit pixels have no defined'):
    images.from_pil(Image.new(mode, (4, 4)), COLOR)


def test_broken_pil_image_raises_error(tmp_path):
  file = save(tmp_path / 'image.png', colored_image('RGB'))
  file.write_bytes(file.read_bytes()[:-40])
  with Image.open(file) as image:
    with pytest.raises(UserError, match='invalid image: '):
      images.from_pil(image, COLOR)


def test_transparent_pixels_become_white(tmp_path):
  picture = Image.new('RGBA', (84, 84), (0, 0, 0, 0))
  picture.paste((0, 0, 0, 255), (20, 20, 40, 40))
  for image in (picture, picture.convert('LA')):
    read = images.read_image(save(tmp_path / 'a.png', image), COLOR)
    assert read.pixels[0, 0].tolist() == [255] * 3
    assert read.pixels[30, 30].tolist() == [0] * 3
    assert read.thumbnail[0, 0].tolist() == [255] * 3


def test_16_bit_pixels_are_scaled_not_clipped(tmp_path):
  gray = np.full((84, 84), 300 << 6, np.uint16)
  path = save(tmp_path / 'a.png', Image.fromarray(gray))
  assert (images.read_image(path, COLOR).pixels == (300 << 6) >> 8).all()


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation_follows_the_tiff_specification(tmp_path, orientation):
  stored = np.random.default_rng(0).integers(0, 256, (84, 84, 3), np.uint8)
  exif = Image.Exif()
  exif[0x0112] = orientation
  path = save(tmp_path / 'a.png', Image.fromarray(stored), exif=exif)
  # TIFF 6.0, page 36: the edges where row 0 and column 0 are displayed.
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


def malicious_exif() -> bytes:
  """Returns EXIF entries that point to each other and beyond the end."""
  entry = struct.pack('<HHII', 0x8769, 4, 0xFFFFFFFF, 8)
  return b'Exif\0\0II*\0\x08\0\0\0' + struct.pack('<H', 60000) + 40 * entry


@pytest.mark.parametrize(
  'exif',
  [malicious_exif(), b'Exif\0\0garbage', b'x'],
  ids=['malicious', 'garbage', 'too short'],
)
def test_broken_exif_is_ignored_without_warning(tmp_path, exif):
  path = save(
    tmp_path / 'a.jpg', image_folders.draw_picture('bar', 0), exif=exif
  )
  plain = save(tmp_path / 'b.jpg', image_folders.draw_picture('bar', 0))
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    pixels = images.read_image(path, COLOR).pixels
  np.testing.assert_array_equal(pixels, images.read_image(plain, COLOR).pixels)
  assert not caught


def png_without_pixels(width: int, height: int) -> bytes:
  """Returns a PNG whose header declares a size, but with no pixel data."""

  def chunk(name, content):
    check = struct.pack('>I', zlib.crc32(name + content))
    return struct.pack('>I', len(content)) + name + content + check

  head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
  body = chunk(b'IHDR', head) + chunk(b'IDAT', zlib.compress(b''))
  return b'\x89PNG\r\n\x1a\n' + body + chunk(b'IEND', b'')


def png_with_text(num_bytes: int) -> bytes:
  """Returns a PNG with a compressed text chunk of this uncompressed size."""
  buffer = io.BytesIO()
  image_folders.draw_picture('bar', 0).save(buffer, 'png')
  content = b'a\0\0' + zlib.compress(bytes(num_bytes), 9)
  chunk = b'zTXt' + content
  chunk = struct.pack('>I', len(content)) + chunk
  chunk += struct.pack('>I', zlib.crc32(chunk[4:]))
  whole = buffer.getvalue()
  return whole[:33] + chunk + whole[33:]


UNREADABLE = {
  'empty': (b'', 'empty file'),
  'text': (b'some text', 'not an image'),
  'program': (b'\x7fELF' + bytes(100), 'not an image'),
  'huge': (png_without_pixels(60000, 60000), 'too many pixels'),
  'large': (png_without_pixels(13000, 12000), 'too many pixels: 13000 x 12000'),
  'no pixels': (png_without_pixels(100, 100), 'broken: '),
  'huge text': (
    png_with_text(300_000_000),
    'broken: Decompressed data too large',
  ),
  'svg': (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'not an image'),
}


@pytest.mark.parametrize('name', UNREADABLE)
def test_unreadable_file_raises_error_with_reason(tmp_path, name):
  content, reason = UNREADABLE[name]
  path = tmp_path / 'a.jpg'
  path.write_bytes(content)
  with pytest.raises(images.UnreadableImageError, match=f'^{reason}'):
    images.read_image(path, COLOR)


def test_truncated_or_missing_file_raises_error_with_reason(tmp_path):
  whole = save(
    tmp_path / 'a.jpg', image_folders.draw_picture('disc', 0)
  ).read_bytes()
  (tmp_path / 'a.jpg').write_bytes(whole[: len(whole) // 2])
  with pytest.raises(
    images.UnreadableImageError, match='broken: .*[Tt]runcated'
  ):
    images.read_image(tmp_path / 'a.jpg', COLOR)
  with pytest.raises(images.UnreadableImageError, match='No such file'):
    images.read_image(tmp_path / 'b.jpg', COLOR)


def test_float_pixels_and_oversized_files_raise_error(tmp_path, monkeypatch):
  gray = Image.fromarray(np.full((9, 9), 1e6, np.float32))
  path = save(tmp_path / 'a.tif', gray)
  with pytest.raises(
    images.UnreadableImageError, match='no defined value range'
  ):
    images.read_image(path, COLOR)
  monkeypatch.setattr(images, 'MAX_BYTES', 1 << 20)
  with open(path, 'ab') as file:
    file.truncate(2 << 20)
  with pytest.raises(images.UnreadableImageError, match='larger than 1 MB'):
    images.read_image(path, COLOR)


def test_class_folders_list_regular_visible_files_at_any_depth(tmp_path):
  for name in (
    'cat/b.jpg',
    'cat/more/a.jpg',
    'cat/.hidden',
    'dog/a.png',
    '.git/x/y',
    '__MACOSX/a',
    'other.txt',
  ):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  os.mkfifo(tmp_path / 'dog' / 'pipe.jpg')
  (tmp_path / 'cat' / 'cycle').symlink_to(tmp_path)
  (tmp_path / 'dog' / 'dangling.jpg').symlink_to(tmp_path / 'missing')
  classes, other_files = images.list_class_folders(tmp_path)
  assert list(classes) == ['cat', 'dog']
  cat = [str(path.relative_to(tmp_path)) for path in classes['cat']]
  assert cat == ['cat/b.jpg', 'cat/more/a.jpg']
  assert classes['dog'] == [tmp_path / 'dog' / 'a.png']
  assert other_files == [tmp_path / 'other.txt']
