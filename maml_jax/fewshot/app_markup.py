"""HTML and scripts of the page of `app`, and its built-in examples."""

import base64
import html
import pathlib

import numpy as np

from maml_jax.data.images import Picture
from maml_jax.data.records import encode_png

__all__ = [
  'CSS',
  'PAD',
  'PAD_SCRIPT',
  'class_html',
  'draw_shapes',
  'escape',
  'prediction_html',
]

CSS = """
canvas,canvas+button{display:block;margin:0 auto 8px}
canvas{width:240px;background:#fff;cursor:crosshair;border:1px solid #8888;
 border-radius:8px;touch-action:none}
.tiles{display:flex;flex-wrap:wrap;gap:6px;align-items:center;margin:8px 0}
#notes{overflow-wrap:anywhere}
.tiles b{min-width:5em;max-width:100%;overflow-wrap:anywhere}
.tiles img{height:44px;border:1px solid #8888;border-radius:4px}
.steps{contain:inline-size;overflow-x:auto;margin-bottom:20px;font-size:13px}
.steps tr{white-space:nowrap}
.steps :is(td,th){padding:4px 6px;text-align:right}
.steps th:first-child{max-width:10em;white-space:normal;
 overflow-wrap:anywhere}
.steps :is(td,th):last-child{position:sticky;right:0;font-weight:bold;
 background:var(--body-background-fill)}
"""
PAD = """
<canvas width="240" height="240" aria-label="drawing"></canvas>
<button>Wipe</button>
"""
# The value becomes the drawing as a data URI; an empty value wipes it.
PAD_SCRIPT = """
const pad = element.querySelector('canvas'), pen = pad.getContext('2d')
let last = null
const draw = e => {
  const box = pad.getBoundingClientRect()
  const next = [e.clientX - box.x, e.clientY - box.y]
  Object.assign(pen, {lineWidth: 13, lineCap: 'round', lineJoin: 'round'})
  pen.beginPath(); pen.moveTo(...(last || next)); pen.lineTo(...next)
  pen.stroke(); last = next
}
const wipe = () => { pad.width = 240 }
pad.onpointerdown = e => { pad.setPointerCapture(e.pointerId); draw(e) }
pad.onpointermove = e => last && draw(e)
pad.onpointerup = () => { last = null; props.value = pad.toDataURL() }
element.querySelector('button').onclick = () => { wipe(); props.value = '' }
watch('value', () => props.value || wipe())
"""


def escape(text) -> str:
  """Returns text as HTML without characters of Gradio's templates."""
  text = html.escape(str(text))
  return text.replace('{', '&#123;').replace('$', '&#36;')


def class_html(name: str, pictures: list[Picture], note: str = '') -> str:
  """Returns the name of a class, a note and pictures as HTML, without files."""
  uris = [base64.b64encode(encode_png(p.thumbnail)).decode() for p in pictures]
  tags = [f'<img alt="" src="data:image/png;base64,{uri}">' for uri in uris]
  title = f'<b><bdi>{escape(name)}</bdi>{note}</b>'
  return f'<div class="tiles">{title}{"".join(tags)}</div>'


def prediction_html(picture: Picture, classes, by_step: np.ndarray) -> str:
  """Returns the probabilities [K + 1, W] for a picture as HTML."""
  steps = ''.join(f'<th>{step}' for step in range(len(by_step)))
  rows = [f'<th>% after step{steps}']
  for name, row in zip(classes, 100 * by_step.T, strict=True):
    color = 'color-mix(in srgb,#f97316 {:.0f}%,var(--body-background-fill))'
    cells = [
      f'<td style="background:{color.format(0.6 * p)}">{p:.0f}' for p in row
    ]
    rows.append(f'<th><bdi>{escape(name)}</bdi>{"".join(cells)}')
  best = by_step[-1].argmax()
  note = f' {100 * by_step[-1, best]:.0f} %'
  table = f'<table><tr>{"<tr>".join(rows)}</table>'
  prediction = class_html(classes[best], [picture], note)
  return f'{prediction}<div class="steps">{table}</div>'


def draw_shapes(folder: pathlib.Path) -> list[tuple[str, pathlib.Path]]:
  """Draws four variants of each of three shapes; returns names and files."""
  from PIL import Image, ImageDraw  # saves start-up time

  shapes = []
  for name, sides in {'circle': 40, 'square': 4, 'triangle': 3}.items():
    for i in range(4):
      image, circle = Image.new('L', (112, 112), 255), (56, 56, 28 + 4 * i)
      draw = ImageDraw.Draw(image)
      draw.regular_polygon(circle, sides, 8 * i - 12, outline=0, width=6)
      shapes.append((name, folder / f'{name}{i}.png'))
      image.save(shapes[-1][1])
  return shapes
