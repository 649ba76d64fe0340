"""Rebuilds evaluated tasks and renders them with their predictions.

The tasks of an evaluation are fixed, and its result contains the predictions.
This needs the data set but no checkpoint.
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
from maml_jax.experiment.task_source import eval_task_indices, task_classes
from maml_jax.report import markup
from maml_jax.report.episode_plot import label_letter
from maml_jax.report.runs import Evaluation
from maml_jax.types import Dataset, Episode
from maml_jax.utils.errors import UserError

__all__ = [
  'MAX_QUERIES',
  'EvaluatedTask',
  'load_split',
  'rebuild_tasks',
  'render_task',
  'render_tile',
  'short_class_name',
  'sprite_style',
  'try_load_split',
]

MAX_SHOTS, MAX_QUERIES = 5, 8  # images per class that are shown
JPEG_OPTIONS = {'quality': 80}


class EvaluatedTask(NamedTuple):
  """One task with its predictions; W ways, S shots, Q queries per class.

  Attributes:
    index: among the tasks of the evaluation.
    images: [W, S + Q, H, W, C] uint8.
    shots: S.
    predicted: [W, Q] predicted labels.
    class_names: W names.
  """

  index: int
  images: np.ndarray
  shots: int
  predicted: np.ndarray
  class_names: list[str]

  @property
  def is_correct(self) -> np.ndarray:
    """Whether each prediction is correct, [W, Q]."""
    return self.predicted == np.arange(len(self.predicted))[:, None]

  @property
  def episode(self) -> Episode:
    """The task as an `Episode` with images in 0..1."""
    return split_episode(self.images / 255, shots=self.shots)


def load_split(evaluation: Evaluation) -> tuple[Dataset, list[str]]:
  """Loads the evaluated split and the names of its classes.

  Raises:
    UserError: the data are not prepared on this machine.
  """
  result = evaluation.result
  root = result.get('data_root')
  if root is None:  # the data set of the training
    root = result.get('config', {}).get('data', {}).get('root')
  root = root or None
  name, split = result['data'], result['split']
  names = data.class_names(name, split, root)
  return data.load_dataset(name, split, root), [
    short_class_name(n) for n in names
  ]


def try_load_split(
  evaluation: Evaluation,
) -> tuple[Dataset | None, list[str], str]:
  """Loads the evaluated split if it is available.

  Returns:
    The data set, its class names and ''; if they are not available, None, []
    and the reason.
  """
  try:
    return *load_split(evaluation), ''
  except UserError as error:
    reason = str(error).partition('\n')[0]
    return None, [], f'Images and class names are not available: {reason}'


def short_class_name(name: str) -> str:
  """Returns a class name without its WordNet ID, such as ', n01532829'."""
  first, _, last = name.rpartition(', ')
  is_id = last[:1] == 'n' and last[1:].isdecimal()
  return first if first and is_id else name


def rebuild_tasks(
  evaluation: Evaluation,
  dataset: Dataset,
  class_names: Sequence[str],
  indices: Sequence[int],
) -> list[EvaluatedTask]:
  """Rebuilds tasks of an evaluation with their images.

  Args:
    evaluation: with the arrays `predicted` and `classes`.
    dataset: from `load_split`.
    class_names: from `load_split`.
    indices: of the tasks.

  Raises:
    UserError: the data set differs from the one that was evaluated.
  """
  # Results of earlier versions are on the data set of the training.
  result = {'data_root': None, **evaluation.result}
  missing = [field for field in Phase._fields if field not in result]
  if missing:
    raise UserError(f'the result lacks the fields {", ".join(missing)}')
  phase = Phase(**{field: result[field] for field in Phase._fields})
  positions, _ = eval_task_indices(dataset, phase, max(indices) + 1)
  classes = task_classes(dataset, positions)
  evaluated = evaluation.arrays['classes'][: len(classes)]
  if not np.array_equal(classes, evaluated):
    raise UserError(
      f'the prepared data set {result["data"]} differs from the evaluated one'
    )
  predicted = evaluation.arrays['predicted']
  return [
    EvaluatedTask(
      i,
      np.asarray(dataset.images[positions[i]]),
      phase.shots,
      predicted[i].reshape(phase.ways, phase.queries),
      [class_names[int(c)] for c in classes[i]],
    )
    for i in indices
  ]


def render_task(task: EvaluatedTask, title: object) -> markup.Html:
  """Renders a task: a row per class, its support images, then its queries."""
  shots = min(task.shots, MAX_SHOTS)
  last = task.shots + MAX_QUERIES
  tiles = np.concatenate(
    [task.images[:, :shots], task.images[:, task.shots : last]], axis=1
  )
  ways, columns = tiles.shape[:2]
  rows = [_render_row(task, row, shots, columns) for row in range(ways)]
  return markup.element(
    'figure',
    markup.element('figcaption', title),
    *rows,
    class_='episode',
    style=sprite_style(tiles),
  )


def sprite_style(tiles: np.ndarray) -> str:
  """Returns CSS variables with the images that `render_tile` refers to.

  Args:
    tiles: images [rows, columns, H, W, C].
  """
  rows, columns = tiles.shape[:2]
  url = _sprite_url(tiles)
  return f'--sprite:url({url});--size:{100 * columns}% {100 * rows}%'


def render_tile(
  place: tuple[int, int], shape: tuple[int, int], alt: str, text='', kind=''
) -> markup.Html:
  """Renders one image of `sprite_style` with text below it.

  Args:
    place: row and column of the image.
    shape: number of rows and columns.
    alt: a description for screen readers.
    text: text below the image.
    kind: 'correct', 'wrong' or ''.
  """
  y, x = (
    100 * i / (n - 1) if n > 1 else 0 for i, n in zip(place, shape, strict=True)
  )
  position = f'background-position:{x:.4g}% {y:.4g}%'
  image = markup.element('i', role='img', aria_label=alt, style=position)
  return markup.element('div', image, text, class_=f'tile {kind}'.strip())


def _sprite_url(tiles: np.ndarray) -> str:
  """Returns images [rows, columns, H, W, C] as one image in a data URL."""
  rows, columns, height, width, channels = tiles.shape
  sheet = tiles.transpose(0, 2, 1, 3, 4)
  sheet = sheet.reshape(rows * height, columns * width, channels)
  file = io.BytesIO()
  kind, options = ('png', {}) if channels == 1 else ('jpeg', JPEG_OPTIONS)
  sheet = np.broadcast_to(sheet, (*sheet.shape[:2], 3))
  matplotlib.image.imsave(file, sheet, format=kind, pil_kwargs=options)
  code = base64.b64encode(file.getvalue()).decode()
  return f'data:image/{kind};base64,{code}'


def _render_row(
  task: EvaluatedTask, row: int, shots: int, columns: int
) -> markup.Html:
  """Renders one class of a task."""
  shape, own_letter = (len(task.class_names), columns), label_letter(row)
  support = (
    render_tile((row, i), shape, f'support image of {own_letter}')
    for i in range(shots)
  )
  queries = []
  for i in range(columns - shots):
    predicted = label_letter(task.predicted[row, i])
    is_correct = task.is_correct[row, i]
    alt = f'query image of {own_letter}, predicted as {predicted}'
    text = f'{"✓" if is_correct else "✗"} {predicted}'
    kind = 'correct' if is_correct else 'wrong'
    queries.append(render_tile((row, shots + i), shape, alt, text, kind))
  is_correct = task.is_correct[row]
  name = (
    f'{task.class_names[row]}: {is_correct.sum()} of {len(is_correct)} correct'
  )
  return markup.element(
    'div',
    markup.element('b', own_letter),
    markup.element('span', name, class_='name'),
    markup.element('div', *support, class_='tiles shots'),
    markup.element('div', *queries, class_='tiles queries'),
    class_='row',
  )
