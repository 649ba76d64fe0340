"""Tasks that were measured, with their images and what was answered.

Images are drawn anew, which takes the data set but no checkpoint: the tasks of
an evaluation are always the same, and the answers lie beside it.
"""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.image
import numpy as np

from maml_jax import data
from maml_jax.data.episodes import split_episode
from maml_jax.experiment.setup import Phase
from maml_jax.experiment.task_source import eval_task_indices
from maml_jax.report import markup
from maml_jax.report.demo_plots import letter
from maml_jax.report.runs import Evaluation
from maml_jax.types import Dataset, Episode
from maml_jax.utils.errors import UserError

MAX_SHOTS, MAX_QUERIES = 5, 8  # images of a class that are shown
JPEG = {'quality': 80}


class Task(NamedTuple):
  """One task with its answers; S shots, Q queries per class.

  Attributes:
    number: among those of the evaluation.
    image: [W, S + Q, H, W, C] uint8.
    shots: S.
    predicted: [W, Q] labels.
    names: W.
  """

  number: int
  image: np.ndarray
  shots: int
  predicted: np.ndarray
  names: list[str]

  @property
  def right(self) -> np.ndarray:
    """[W, Q]"""
    return self.predicted == np.arange(len(self.predicted))[:, None]

  @property
  def episode(self) -> Episode:
    return split_episode(self.image / 255, shots=self.shots)


def load_split(evaluation: Evaluation) -> tuple[Dataset, list[str]]:
  """The data that were measured, and the names of their classes.

  Raises:
    UserError: they are not prepared on this machine.
  """
  facts = evaluation.facts
  root = facts.get('config', {}).get('data', {}).get('root') or None
  name, split = facts['data'], facts['split']
  names = data.class_names(name, split, root)
  return data.load_dataset(name, split, root), [
    short_class_name(n) for n in names
  ]


def short_class_name(name: str) -> str:
  """The name of a class without the number that ImageNet gives it."""
  first, _, last = name.rpartition(', ')
  is_number = last[:1] == 'n' and last[1:].isdecimal()
  return first if first and is_number else name


def rebuild_tasks(
  evaluation: Evaluation,
  dataset: Dataset,
  names: Sequence[str],
  numbers: Sequence[int],
) -> list[Task]:
  """Draws tasks of an evaluation anew.

  Args:
    evaluation: with the arrays `predicted` and `classes`.
    dataset: from `load_split`.
    names: likewise.
    numbers: of the tasks.

  Raises:
    UserError: the data here are not those that were measured.
  """
  facts = evaluation.facts
  missing = [field for field in Phase._fields if field not in facts]
  if missing:
    raise UserError(f'the evaluation does not say {", ".join(missing)}')
  phase = Phase(**{field: facts[field] for field in Phase._fields})
  positions, _ = eval_task_indices(dataset, phase, max(numbers) + 1)
  # Images lie in order of class.
  classes = np.searchsorted(
    np.cumsum(dataset.size), positions[:, :, 0], 'right'
  )
  measured = evaluation.arrays['classes'][: len(classes)]
  if not np.array_equal(classes, measured):
    raise UserError('the tasks drawn here are not those that were measured')
  predicted = evaluation.arrays['predicted']
  return [
    Task(
      i,
      np.asarray(dataset.images[positions[i]]),
      phase.shots,
      predicted[i].reshape(phase.ways, phase.queries),
      [names[c] for c in classes[i]],
    )
    for i in numbers
  ]


def render_task(task: Task, title: object) -> markup.Html:
  """A task for the page: a row per class, its support images, its queries."""
  shots = min(task.shots, MAX_SHOTS)
  last = task.shots + MAX_QUERIES
  tiles = np.concatenate(
    [task.image[:, :shots], task.image[:, task.shots : last]], axis=1
  )
  ways, columns = tiles.shape[:2]
  rows = [_row(task, row, shots, columns) for row in range(ways)]
  return markup.element(
    'figure',
    markup.element('figcaption', title),
    *rows,
    class_='episode',
    style=sprite_style(tiles),
  )


def sprite_style(tiles: np.ndarray) -> str:
  """The images [rows, columns, H, W, C] as variables for `tile` to refer to."""
  rows, columns = tiles.shape[:2]
  return f'--sprite:url({sprite(tiles)});--size:{100 * columns}% {100 * rows}%'


def tile(
  place: tuple[int, int], shape: tuple[int, int], alt: str, text='', kind=''
) -> markup.Html:
  """One image of those in `style`, with words below.

  Args:
    place: row and column.
    shape: rows and columns that there are.
    alt: what it shows.
    text: the words.
    kind: 'right', 'wrong' or ''.
  """
  y, x = (
    100 * i / (n - 1) if n > 1 else 0 for i, n in zip(place, shape, strict=True)
  )
  position = f'background-position:{x:.4g}% {y:.4g}%'
  image = markup.element('i', role='img', aria_label=alt, style=position)
  return markup.element('div', image, text, class_=f'tile {kind}'.strip())


def sprite(tiles: np.ndarray) -> str:
  """Images [rows, columns, H, W, C] side by side, as a data URL."""
  rows, columns, height, width, channels = tiles.shape
  sheet = tiles.transpose(0, 2, 1, 3, 4)
  sheet = sheet.reshape(rows * height, columns * width, channels)
  file = io.BytesIO()
  kind, options = ('png', {}) if channels == 1 else ('jpeg', JPEG)
  sheet = np.broadcast_to(sheet, (*sheet.shape[:2], 3))
  matplotlib.image.imsave(file, sheet, format=kind, pil_kwargs=options)
  code = base64.b64encode(file.getvalue()).decode()
  return f'data:image/{kind};base64,{code}'


def _row(task: Task, row: int, shots: int, columns: int) -> markup.Html:
  shape = len(task.names), columns
  support = (
    tile((row, i), shape, f'support image of {letter(row)}')
    for i in range(shots)
  )
  queries = []
  for i in range(columns - shots):
    answer, right = letter(task.predicted[row, i]), task.right[row, i]
    alt = f'query image of {letter(row)}, taken for {answer}'
    text = f'{"✓" if right else "✗"} {answer}'
    kind = 'right' if right else 'wrong'
    queries.append(tile((row, shots + i), shape, alt, text, kind))
  name = f'{task.names[row]}: {task.right[row].sum()} of '
  name += f'{task.right.shape[1]} right'
  return markup.element(
    'div',
    markup.element('b', letter(row)),
    markup.element('span', name, class_='name'),
    markup.element('div', *support, class_='tiles shots'),
    markup.element('div', *queries, class_='tiles queries'),
    class_='row',
  )
