"""glyphs: Unicode characters in twelve typefaces, 28 x 28, made on the spot.

A class is one character. Its 20 images are drawn with the DejaVu typefaces
that matplotlib ships, each slightly turned, sheared, stretched, shifted and
thickened; ink is 255 on 0, as in Omniglot. The splits share no script: Latin,
Cyrillic, digits and symbols to train on, Greek and Lao to validate, Georgian
and Armenian to test.

Classes are told apart by shape alone: every character fills the same box, so
c and C are one shape. Of characters that look alike in any typeface only the
first in Unicode order is kept, and those that are another one plus a mark are
left out. Another version of Pillow or matplotlib may keep a few others.
"""

import functools
import importlib.util
import io
import unicodedata
from pathlib import Path

import numpy as np

from maml_jax.data import records
from maml_jax.utils.errors import UserError

FACES = tuple(
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
LEFT_OUT = (' WITH ', 'BRAILLE', 'BOX DRAWINGS')
IMAGES_PER_CLASS = 20
MIN_FACES = 8
MAX_SIMILARITY = 0.96  # cosine of two blurred drawings in the same face

SIZE = 28
BOX = 20  # the longer side of a glyph before it is warped, in pixels
OVERSAMPLING = 3
NO_WARP = np.eye(2)


def _source(directory: Path | None) -> records.Splits:
  del directory
  faces = _faces()
  splits = {split: [] for split in records.SPLITS}
  for char in _distinct(_characters(faces), faces):
    name = unicodedata.name(char)
    owned = [face for face in faces if ord(char) in _cmap(face)]
    for i in range(IMAGES_PER_CLASS):
      face = owned[i % len(owned)]
      splits[_split(name)].append(
        records.Record(
          f'{char} {name}',
          f'{i:02d} {face.stem}',
          functools.partial(_png, char, face, i),
        )
      )
  return splits


def _split(name: str) -> str:
  script = name.split()[0]
  for split, scripts in SCRIPTS.items():
    if script in scripts:
      return split
  return 'train'


def _faces() -> list[Path]:
  package = importlib.util.find_spec('matplotlib')
  if package is None:
    raise UserError('glyphs: needs the typefaces of matplotlib: pip install it')
  folder = Path(package.origin).parent / 'mpl-data' / 'fonts' / 'ttf'
  return [folder / face for face in FACES]


@functools.cache
def _cmap(face: Path) -> frozenset[int]:
  from fontTools.ttLib import TTFont

  with TTFont(face, lazy=True) as font:
    return frozenset(font.getBestCmap())


def _characters(faces: list[Path]) -> list[str]:
  """Characters that are a shape of their own, in at least MIN_FACES faces."""
  count = np.bincount([code for face in faces for code in _cmap(face)])
  return [
    char
    for char in map(chr, np.flatnonzero(count >= MIN_FACES))
    if unicodedata.category(char) in CATEGORIES
    and not unicodedata.decomposition(char)
    and not any(word in unicodedata.name(char) for word in LEFT_OUT)
  ]


def _distinct(chars: list[str], faces: list[Path]) -> list[str]:
  """Drops each character that looks like an earlier one in any face."""
  similarity = np.zeros((len(chars), len(chars)), np.float32)
  for face in faces:
    shape = np.zeros((len(chars), SIZE * SIZE), np.float32)
    for i, char in enumerate(chars):
      if ord(char) in _cmap(face):
        shape[i] = _blurred(_draw(char, face)).ravel()
    shape /= np.linalg.norm(shape, axis=1, keepdims=True) + 1e-6
    np.maximum(similarity, shape @ shape.T, out=similarity)
  kept = []
  for i in range(len(chars)):
    drawn = similarity[i, i] > 0  # some have a glyph without ink
    if drawn and not np.any(similarity[i, kept] > MAX_SIMILARITY):
      kept.append(i)
  return [chars[i] for i in kept]


def _blurred(image):
  from PIL import ImageFilter

  return np.asarray(image.filter(ImageFilter.GaussianBlur(1)), np.float32)


def _png(char: str, face: Path, i: int) -> bytes:
  """Draws image i of a character, its warp a function of both."""
  rng = np.random.default_rng((ord(char), i))
  turn, shear = rng.uniform(-1, 1, 2) * (np.pi / 30, 0.1)
  warp = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
  warp = warp @ [[1, shear], [0, 1]] @ np.diag(rng.uniform(0.9, 1.1, 2))
  shift = rng.uniform(-1, 1, 2)
  buffer = io.BytesIO()
  _draw(char, face, warp, shift, rng.integers(0, 3)).save(buffer, 'png')
  return buffer.getvalue()


def _draw(char: str, face: Path, warp=NO_WARP, shift=(0, 0), stroke=0):
  """Draws a character centred and fitted into the box, then warped.

  Args:
    char: the character.
    face: the font file.
    warp: [2, 2], maps offsets from the centre to warped offsets.
    shift: [2], pixels, applied last.
    stroke: thickening, in pixels of the large drawing.
  """
  from PIL import Image, ImageDraw

  font = _font(face)
  left, top, right, bottom = font.getbbox(char, stroke_width=stroke)
  glyph = Image.new('L', (max(1, right - left), max(1, bottom - top)))
  ImageDraw.Draw(glyph).text(
    (-left, -top), char, 255, font, stroke_width=stroke
  )
  glyph = glyph.crop(glyph.getbbox())
  # PIL wants the map from pixels of the result to pixels of the glyph.
  large = SIZE * OVERSAMPLING
  scale = BOX * OVERSAMPLING / max(glyph.size)
  inverse = np.linalg.inv(scale * warp)
  centre = large / 2 + OVERSAMPLING * np.asarray(shift)
  offset = np.array(glyph.size) / 2 - inverse @ centre
  return glyph.transform(
    (large, large),
    Image.Transform.AFFINE,
    (*inverse[0], offset[0], *inverse[1], offset[1]),
    Image.Resampling.BILINEAR,
  ).reduce(OVERSAMPLING)


@functools.cache
def _font(face: Path):
  from PIL import ImageFont

  return ImageFont.truetype(
    str(face), BOX * OVERSAMPLING, layout_engine=ImageFont.Layout.BASIC
  )


SPEC = records.DatasetSpec(
  name='glyphs',
  image_shape=(SIZE, SIZE, 1),
  layout='nothing: it is drawn from the typefaces that matplotlib ships',
  source=_source,
  images_per_class=IMAGES_PER_CLASS,
  generated=True,
  light_on_dark=True,
)
