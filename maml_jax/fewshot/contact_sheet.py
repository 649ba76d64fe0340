"""A contact sheet: what a classifier learned from, and what it answered.

Colours are those of the reports; nothing is said by colour alone.
"""

import functools
import importlib.util
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

BLUE, VERMILION, GREY, BLACK = '#0072B2', '#D55E00', '#6B7280', '#111827'
TILE, GAP, MARGIN, LINE = 112, 14, 24, 16  # pixels
COLUMNS = 9
# Of an answer that is right, wrong, or neither for all one knows.
OUTCOME_STYLES = {
  True: (BLUE, '✓ '),
  False: (VERMILION, '✗ '),
  None: (BLACK, ''),
}
MAX_SUPPORT_TILES = 18  # images of one class in the support set


class Tile(NamedTuple):
  """One image with what is said about it.

  Attributes:
    image: uint8 [h, w, 3], at most `TILE` high and wide.
    name: of its file; '' for none.
    answer: the predicted class; '' for none.
    probability: of that class, in [0, 1].
    right: whether it is the true class; None where that is not known.
  """

  image: np.ndarray
  name: str
  answer: str = ''
  probability: float = 0.0
  right: bool | None = None


class Row(NamedTuple):
  """Images under a heading."""

  heading: str
  tiles: Sequence[Tile]


def draw(title: str, remark: str, support: Sequence[Row], query: Row | None):
  """Draws a contact sheet.

  Args:
    title: the first line.
    remark: the second, smaller.
    support: a row of each class; of many images the first `MOST` are shown.
    query: the images that were asked for, all of which are shown.

  Returns:
    An image of PIL.
  """
  rows = [_first(row) for row in support]
  if query:
    rows.append(query)
  per_tile = TILE + 3 * LINE + GAP
  lines = [-(-len(row.tiles) // COLUMNS) for row in rows]
  height = 2 * MARGIN + 52 + sum(30 + n * per_tile for n in lines)
  width = 2 * MARGIN + COLUMNS * (TILE + GAP) - GAP
  sheet = Image.new('RGB', (width, height), 'white')
  pen = ImageDraw.Draw(sheet)
  _text(pen, (MARGIN, MARGIN), title, 17, BLACK, width - 2 * MARGIN, bold=True)
  _text(pen, (MARGIN, MARGIN + 26), remark, 12, GREY, width - 2 * MARGIN)
  y = MARGIN + 52
  for row, count in zip(rows, lines, strict=True):
    _text(
      pen,
      (MARGIN, y + 4),
      row.heading,
      14,
      BLACK,
      width - 2 * MARGIN,
      bold=True,
    )
    y += 30
    for i, tile in enumerate(row.tiles):
      x = MARGIN + i % COLUMNS * (TILE + GAP)
      _draw_tile(sheet, pen, x, y + i // COLUMNS * per_tile, tile)
    y += count * per_tile
  return sheet


def save(sheet, path: pathlib.Path) -> None:
  """Writes a sheet as PNG; a reader finds an older one or this one, whole."""
  new = path.with_name(path.name + '.new')
  try:
    sheet.save(new, 'png')
    new.replace(path)
  finally:
    new.unlink(missing_ok=True)


def _first(row: Row) -> Row:
  if len(row.tiles) <= MAX_SUPPORT_TILES:
    return row
  shown = f'the first {MAX_SUPPORT_TILES} of {len(row.tiles)}'
  return Row(f'{row.heading} ({shown})', row.tiles[:MAX_SUPPORT_TILES])


def _draw_tile(sheet, pen, x: int, y: int, tile: Tile) -> None:
  image = Image.fromarray(tile.image)
  if max(image.size) < TILE:  # small ones are shown larger, pixel by pixel
    factor = TILE / max(image.size)
    size = [max(1, round(factor * side)) for side in image.size]
    image = image.resize(size, Image.Resampling.NEAREST)
  left, top = x + (TILE - image.width) // 2, y + (TILE - image.height) // 2
  sheet.paste(image, (left, top))
  color, mark = OUTCOME_STYLES[tile.right]
  box = left - 2, top - 2, left + image.width + 1, top + image.height + 1
  pen.rectangle(
    box,
    outline=GREY if tile.right is None else color,
    width=1 if tile.right is None else 2,
  )
  y += TILE + 3
  if tile.answer:
    size = TILE + GAP - 4
    _text(
      pen,
      (x, y),
      f'{mark}{tile.answer}',
      12,
      color,
      size,
      bold=tile.right is False,
    )
    _text(pen, (x, y + LINE), f'{tile.probability:.1%}', 12, color, size)
    y += 2 * LINE
  _text(pen, (x, y), tile.name, 9, GREY, TILE + GAP - 4)


def _text(pen, place, text, size, color, width, bold=False):
  """Writes one line; what is wider than that many pixels loses its middle."""
  font = _font(size, bold)
  shown, kept = text, len(text)
  while kept > 1 and font.getlength(shown) > width:
    kept = min(kept - 1, 80)
    shown = f'{text[: kept // 2]}…{text[len(text) - (kept + 1) // 2 :]}'
  pen.text(place, shown, color, font)


@functools.cache
def _font(size: int, bold: bool):
  """DejaVu Sans as matplotlib ships it; else what Pillow has in itself."""
  package = importlib.util.find_spec('matplotlib')
  if package is None:
    return ImageFont.load_default(size)
  folder = pathlib.Path(package.origin).parent / 'mpl-data' / 'fonts' / 'ttf'
  name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
  return ImageFont.truetype(folder / name, size)
