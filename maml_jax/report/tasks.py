"""Rebuilds evaluated tasks with their images and predictions.

The tasks of an evaluation are fixed, and its result contains the predictions.
This needs the data set but no checkpoint.
"""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import PIL.Image

from maml_jax import data
from maml_jax.data.episodes import split_episode
from maml_jax.experiment.setup import Phase
from maml_jax.experiment.task_source import eval_task_indices, task_classes
from maml_jax.report.runs import Evaluation
from maml_jax.types import Dataset, Episode
from maml_jax.utils.errors import UserError

__all__ = ['EvaluatedTask', 'image_url', 'load_split', 'rebuild_tasks']


class EvaluatedTask(NamedTuple):
  """One task with its predictions; W ways, S shots, Q queries per class."""

  index: int  # among the tasks of the evaluation
  images: np.ndarray  # [W, S + Q, H, W, C] uint8
  shots: int
  predicted: np.ndarray  # [W, Q] labels
  class_names: list[str]  # [W]

  @property
  def episode(self) -> Episode:
    """The task as an `Episode` with images in 0..1."""
    return split_episode(self.images / 255, shots=self.shots)


def load_split(
  evaluation: Evaluation,
) -> tuple[Dataset | None, list[str], str]:
  """Loads the evaluated split if it is prepared on this machine.

  Returns:
    The data set, its class names and ''; otherwise None, [] and the reason.
  """
  result = evaluation.result
  root = result.get('data_root')
  if root is None:  # the data set of the training
    root = result.get('config', {}).get('data', {}).get('root')
  name, split, root = result['data'], result['split'], root or None
  try:
    names = data.class_names(name, split, root)
    dataset = data.load_dataset(name, split, root)
  except UserError as error:
    reason = str(error).partition('\n')[0]
    return None, [], f'Images and class names are not available: {reason}'
  return dataset, [_short_class_name(n) for n in names], ''


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
  if not np.array_equal(classes, evaluation.arrays['classes'][: len(classes)]):
    raise UserError(
      f'the prepared data set {result["data"]} differs from the evaluated one'
    )
  return [
    EvaluatedTask(
      i,
      np.asarray(dataset.images[positions[i]]),
      phase.shots,
      evaluation.arrays['predicted'][i].reshape(phase.ways, phase.queries),
      [class_names[int(c)] for c in classes[i]],
    )
    for i in indices
  ]


def image_url(image: np.ndarray) -> str:
  """Returns an image [H, W, C] uint8 as a data URL: PNG, or JPEG for colors."""
  kind = 'png' if image.shape[-1] == 1 else 'jpeg'
  file = io.BytesIO()
  PIL.Image.fromarray(image.squeeze()).save(file, kind, quality=80)
  return (
    f'data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}'
  )


def _short_class_name(name: str) -> str:
  """Returns a class name without its WordNet ID, such as ', n01532829'."""
  first, _, last = name.rpartition(', ')
  is_id = last[:1] == 'n' and last[1:].isdecimal()
  return first if first and is_id else name
