"""A contact sheet: support and query images with their predictions.

The colors are those of the reports. They never carry information of their own.
"""

import functools
import importlib.util
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maml_jax.fewshot.image_folders import SupportSet
from maml_jax.fewshot.predictions import Prediction
from maml_jax.utils.console import escape_control
from maml_jax.utils.files import oserror_as_user_error, replace_file

__all__ = [
  'GAP',
  'HEADER_HEIGHT',
  'HEADING_HEIGHT',
  'MARGIN',
  'MAX_QUERY_TILES',
  'MAX_SUPPORT_TILES',
  'TILE_SIZE',
  'Row',
  'Tile',
  'draw_contact_sheet',
  'query_row',
  'save_contact_sheet',
  'support_rows',
]

BLUE, VERMILION, GRAY, BLACK = '#0072B2', '#D55E00', '#6B7280', '#111827'
# In pixels.
TILE_SIZE, GAP, MARGIN, LINE_HEIGHT = 112, 14, 24, 16
HEADER_HEIGHT, HEADING_HEIGHT = 52, 30
COLUMNS = 9
# Color and mark of a prediction that is correct, wrong, or of unknown truth.
OUTCOME_STYLES = {
  True: (BLUE, '✓ '),
  False: (VERMILION, '✗ '),
  None: (BLACK, ''),
}
MAX_SUPPORT_TILES = 18  # per class
MAX_QUERY_TILES = 180


class Tile(NamedTuple):
  """One image with its prediction.

  Attributes:
    image: uint8 [h, w, 3]; h and w are at most `TILE_SIZE`.
    name: the file name; '' for none.
    predicted: the predicted class; '' for none.
    probability: the probability of that class, in [0, 1].
    is_correct: whether it is the true class; None if unknown.
  """

  image: np.ndarray
  name: str
  predicted: str = ''
  probability: float = 0.0
  is_correct: bool | None = None


class Row(NamedTuple):
  """Images under a heading."""

  heading: str
  tiles: Sequence[Tile]


def support_rows(support: SupportSet, probabilities: np.ndarray) -> list[Row]:
  """Returns one row per class.

  Args:
    support: N images of W classes.
    probabilities: [N, W].
  """
  names = [escape_control(name) for name in support.classes]
  rows = [Row(name, []) for name in names]
  for picture, label, row in zip(
    support.pictures, support.labels, probabilities, strict=True
  ):
    predicted = int(row.argmax())
    tile = Tile(
      picture.thumbnail,
      escape_control(picture.path.name),
      names[predicted],
      float(row[predicted]),
      predicted == label,
    )
    rows[label].tiles.append(tile)
  return rows


def query_row(
  predictions: Sequence[Prediction], accuracy: Mapping | None
) -> Row:
  """Returns the row of the query images, at most `MAX_QUERY_TILES`.

  Args:
    predictions: one per image, with thumbnails.
    accuracy: from `predictions.measure_accuracy`.
  """
  heading = f'query: {len(predictions)} images'
  if accuracy:
    heading += f', {accuracy["right"]} of {accuracy["images"]} correct'
  if len(predictions) > MAX_QUERY_TILES:
    heading += f' (first {MAX_QUERY_TILES} shown)'
  tiles = [
    Tile(
      p.thumbnail,
      escape_control(pathlib.Path(p.file).name),
      escape_control(p.predicted),
      p.probability,
      p.is_correct,
    )
    for p in predictions[:MAX_QUERY_TILES]
    if p.thumbnail is not None
  ]
  return Row(heading, tiles)


def draw_contact_sheet(
  title: str, subtitle: str, support: Sequence[Row], query: Row | None
) -> Image.Image:
  """Draws a contact sheet.

  Args:
    title: the first line.
    subtitle: the second line, smaller.
    support: one row per class; the first `MAX_SUPPORT_TILES` tiles are shown.
    query: the query images; all tiles are shown.
  """
  rows = [_truncate(row) for row in support]
  if query:
    rows.append(query)
  tile_height = TILE_SIZE + 3 * LINE_HEIGHT + GAP
  num_lines = [-(-len(row.tiles) // COLUMNS) for row in rows]
  row_heights = [HEADING_HEIGHT + n * tile_height for n in num_lines]
  height = 2 * MARGIN + HEADER_HEIGHT + sum(row_heights)
  width = COLUMNS * (TILE_SIZE + GAP) - GAP  # without margins
  sheet = Image.new('RGB', (width + 2 * MARGIN, height), 'white')
  pen = ImageDraw.Draw(sheet)
  _draw_text(pen, (MARGIN, MARGIN), title, 17, BLACK, width, bold=True)
  _draw_text(pen, (MARGIN, MARGIN + 26), subtitle, 12, GRAY, width)
  y = MARGIN + HEADER_HEIGHT
  for row, row_height in zip(rows, row_heights, strict=True):
    corner = (MARGIN, y + 4)
    _draw_text(pen, corner, row.heading, 14, BLACK, width, bold=True)
    for i, tile in enumerate(row.tiles):
      x = MARGIN + i % COLUMNS * (TILE_SIZE + GAP)
      tile_y = y + HEADING_HEIGHT + i // COLUMNS * tile_height
      _draw_tile(sheet, pen, x, tile_y, tile)
    y += row_height
  return sheet


def save_contact_sheet(sheet: Image.Image, path: pathlib.Path) -> None:
  """Writes a contact sheet as PNG; an existing file is replaced atomically.

  Raises:
    UserError: the file cannot be written.
  """
  with oserror_as_user_error(path), replace_file(path) as new:
    sheet.save(new, 'png')


def _truncate(row: Row) -> Row:
  if len(row.tiles) <= MAX_SUPPORT_TILES:
    return row
  heading = f'{row.heading} (first {MAX_SUPPORT_TILES} of {len(row.tiles)})'
  return Row(heading, row.tiles[:MAX_SUPPORT_TILES])


def _draw_tile(sheet, pen, x: int, y: int, tile: Tile) -> None:
  image = Image.fromarray(tile.image)
  if max(image.size) < TILE_SIZE:  # enlarge without interpolation
    factor = TILE_SIZE / max(image.size)
    size = [max(1, round(factor * side)) for side in image.size]
    image = image.resize(size, Image.Resampling.NEAREST)
  left = x + (TILE_SIZE - image.width) // 2
  top = y + (TILE_SIZE - image.height) // 2
  sheet.paste(image, (left, top))
  color, mark = OUTCOME_STYLES[tile.is_correct]
  is_known = tile.is_correct is not None
  box = left - 2, top - 2, left + image.width + 1, top + image.height + 1
  pen.rectangle(
    box, outline=color if is_known else GRAY, width=2 if is_known else 1
  )
  y += TILE_SIZE + 3
  width = TILE_SIZE + GAP - 4
  if tile.predicted:
    text, bold = f'{mark}{tile.predicted}', tile.is_correct is False
    _draw_text(pen, (x, y), text, 12, color, width, bold=bold)
    y += LINE_HEIGHT
    _draw_text(pen, (x, y), f'{tile.probability:.1%}', 12, color, width)
    y += LINE_HEIGHT
  _draw_text(pen, (x, y), tile.name, 9, GRAY, width)


def _draw_text(pen, corner, text, size, color, width, bold=False) -> None:
  """Draws one line; the middle of a text wider than `width` is elided."""
  font = _font(size, bold)
  shown, kept = text, len(text)
  while kept > 1 and font.getlength(shown) > width:
    kept = min(kept - 1, 80)
    shown = f'{text[: kept // 2]}…{text[len(text) - (kept + 1) // 2 :]}'
  pen.text(corner, shown, color, font)


@functools.cache
def _font(size: int, bold: bool):
  """Returns matplotlib's DejaVu Sans, or Pillow's font without matplotlib."""
  package = importlib.util.find_spec('matplotlib')
  if package is None or package.origin is None:
    return ImageFont.load_default(size)
  folder = pathlib.Path(package.origin).parent / 'mpl-data' / 'fonts' / 'ttf'
  name = 'DejaVuSans-Bold.ttf' if bold else 'DejaVuSans.ttf'
  return ImageFont.truetype(folder / name, size)
