"""glyphs: Unicode characters in twelve fonts, 28 x 28, generated on first use.

A class is one character. Its 20 images are drawn with the DejaVu fonts that are
included in matplotlib, and each image is slightly rotated, sheared, scaled,
shifted and thickened. Ink is 255 on a background of 0, as in Omniglot. The
splits share no script: Latin, Cyrillic, digits and symbols are for training,
Greek and Lao for validation, Georgian and Armenian for testing.

Classes differ in shape: every character is scaled to the same box, so c and C
have one shape. Of characters that look alike in any font only the first in
Unicode order is used, and characters composed of another one and a mark are
excluded. Other versions of Pillow or matplotlib may select slightly different
characters.
"""

import functools
import importlib.util
import io
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from maml_jax.data import records
from maml_jax.utils.errors import UserError

if TYPE_CHECKING:
  from PIL import Image

__all__ = [
  'IMAGES_PER_CLASS',
  'SPEC',
  'draw_character',
  'find_fonts',
  'font_codepoints',
]

FONT_FILES = tuple(
  f'DejaVu{family}{style}.ttf'
  for family, slant in (
    ('Sans', 'Oblique'),
    ('SansMono', 'Oblique'),
    ('Serif', 'Italic'),
  )
  for style in ('', '-Bold', f'-{slant}', f'-Bold{slant}')
)
SCRIPTS = {'val': ('GREEK', 'LAO'), 'test': ('GEORGIAN', 'ARMENIAN')}
CATEGORIES = ('Lu', 'Ll', 'Lo', 'Nd', 'Nl', 'No', 'Sc', 'Sm', 'So')
EXCLUDED_WORDS = (' WITH ', 'BRAILLE', 'BOX DRAWINGS')  # in Unicode names
IMAGES_PER_CLASS = 20
MIN_FONTS = 8  # that contain the character
MAX_SIMILARITY = 0.96  # cosine similarity of two blurred drawings in one font

SIZE = 28
BOX = 20  # longer side of a character before it is warped, in pixels
OVERSAMPLING = 3
NO_WARP = np.eye(2)


def _find_records(directory: Path | None) -> records.Splits:
  del directory
  fonts = find_fonts()
  splits = {split: [] for split in records.SPLITS}
  for char in _drop_lookalikes(_candidate_characters(fonts), fonts):
    name = unicodedata.name(char)
    usable = [font for font in fonts if ord(char) in font_codepoints(font)]
    for i in range(IMAGES_PER_CLASS):
      font = usable[i % len(usable)]
      splits[_split_of(name)].append(
        records.Record(
          f'{char} {name}',
          f'{i:02d} {font.stem}',
          functools.partial(_render_image, char, font, i),
        )
      )
  return splits


def _split_of(name: str) -> str:
  """Returns the split of a character, given its Unicode name."""
  script = name.split()[0]
  for split, scripts in SCRIPTS.items():
    if script in scripts:
      return split
  return 'train'


def find_fonts() -> list[Path]:
  """Returns the font files.

  Raises:
    UserError: matplotlib is not installed.
  """
  package = importlib.util.find_spec('matplotlib')
  if package is None or package.origin is None:
    raise UserError(
      'glyphs: the fonts of matplotlib are needed: pip install matplotlib'
    )
  folder = Path(package.origin).parent / 'mpl-data' / 'fonts' / 'ttf'
  return [folder / file for file in FONT_FILES]


@functools.cache
def font_codepoints(font: Path) -> frozenset[int]:
  """Returns the Unicode code points that a font file contains."""
  from fontTools.ttLib import TTFont  # saves start-up time

  with TTFont(font, lazy=True) as file:
    return frozenset(file.getBestCmap())


def _candidate_characters(fonts: list[Path]) -> list[str]:
  """Returns characters in at least MIN_FONTS fonts that are not composed."""
  counts = np.bincount(
    [code for font in fonts for code in font_codepoints(font)]
  )
  return [
    char
    for char in map(chr, np.flatnonzero(counts >= MIN_FONTS))
    if unicodedata.category(char) in CATEGORIES
    and not unicodedata.decomposition(char)
    and not any(word in unicodedata.name(char) for word in EXCLUDED_WORDS)
  ]


def _drop_lookalikes(chars: list[str], fonts: list[Path]) -> list[str]:
  """Drops each character that looks like an earlier one in any font."""
  similarity = np.zeros((len(chars), len(chars)), np.float32)
  for font in fonts:
    shapes = np.zeros((len(chars), SIZE * SIZE), np.float32)
    for i, char in enumerate(chars):
      if ord(char) in font_codepoints(font):
        shapes[i] = _blur(draw_character(char, font)).ravel()
    shapes /= np.linalg.norm(shapes, axis=1, keepdims=True) + 1e-6
    np.maximum(similarity, shapes @ shapes.T, out=similarity)
  kept = []
  for i in range(len(chars)):
    has_ink = similarity[i, i] > 0
    if has_ink and not np.any(similarity[i, kept] > MAX_SIMILARITY):
      kept.append(i)
  return [chars[i] for i in kept]


def _blur(image):
  """Returns a blurred PIL image as a float32 array."""
  from PIL import ImageFilter  # saves start-up time

  return np.asarray(image.filter(ImageFilter.GaussianBlur(1)), np.float32)


def _render_image(char: str, font: Path, i: int) -> bytes:
  """Returns image i of a character as PNG, warped by a fixed random warp."""
  rng = np.random.default_rng((ord(char), i))
  angle, shear = rng.uniform(-1, 1, 2) * (np.pi / 30, 0.1)
  cos, sin = np.cos(angle), np.sin(angle)
  warp = np.array([[cos, -sin], [sin, cos]])
  warp = warp @ [[1, shear], [0, 1]] @ np.diag(rng.uniform(0.9, 1.1, 2))
  shift = rng.uniform(-1, 1, 2)
  buffer = io.BytesIO()
  image = draw_character(char, font, warp, shift, int(rng.integers(0, 3)))
  image.save(buffer, 'png')
  return buffer.getvalue()


def draw_character(
  char: str,
  font: Path,
  warp: np.ndarray = NO_WARP,
  shift: npt.ArrayLike = (0, 0),
  stroke: int = 0,
) -> 'Image.Image':
  """Draws a character, centered and scaled to the box, and warps it.

  Args:
    char: the character.
    font: the font file.
    warp: [2, 2], maps offsets from the center to warped offsets.
    shift: [2], in pixels, applied last.
    stroke: additional stroke width, in pixels of the oversampled drawing.

  Returns:
    A PIL image of mode 'L', SIZE x SIZE, with light ink on black.
  """
  from PIL import Image, ImageDraw  # saves start-up time

  loaded = _load_font(font)
  box = loaded.getbbox(char, stroke_width=stroke)
  left, top, right, bottom = map(int, box)
  glyph = Image.new('L', (max(1, right - left), max(1, bottom - top)))
  ImageDraw.Draw(glyph).text(
    (-left, -top), char, 255, loaded, stroke_width=stroke
  )
  glyph = glyph.crop(glyph.getbbox())
  # PIL expects the map from output pixels to input pixels.
  large = SIZE * OVERSAMPLING
  scale = BOX * OVERSAMPLING / max(glyph.size)
  inverse = np.linalg.inv(scale * warp)
  center = large / 2 + OVERSAMPLING * np.asarray(shift)
  offset = np.array(glyph.size) / 2 - inverse @ center
  return glyph.transform(
    (large, large),
    Image.Transform.AFFINE,
    (*inverse[0], offset[0], *inverse[1], offset[1]),
    Image.Resampling.BILINEAR,
  ).reduce(OVERSAMPLING)


@functools.cache
def _load_font(font: Path):
  from PIL import ImageFont  # saves start-up time

  return ImageFont.truetype(
    str(font), BOX * OVERSAMPLING, layout_engine=ImageFont.Layout.BASIC
  )


SPEC = records.DatasetSpec(
  name='glyphs',
  image_shape=(SIZE, SIZE, 1),
  layout='no files: generated from the fonts included in matplotlib',
  find_records=_find_records,
  images_per_class=IMAGES_PER_CLASS,
  generated=True,
  light_on_dark=True,
)
