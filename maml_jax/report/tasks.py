"""Rebuilds evaluated tasks with their images and predictions.

The tasks of an evaluation are fixed, and its result contains the predictions.
This needs the data set but no checkpoint.
"""

import base64
import io
import re
from typing import NamedTuple

import numpy as np
import PIL.Image

from maml_jax import data
from maml_jax.data.episodes import split_episode
from maml_jax.evaluation.statistics import best_and_worst_tasks
from maml_jax.experiment.setup import Phase
from maml_jax.experiment.task_source import eval_task_indices, task_classes
from maml_jax.report.runs import Evaluation
from maml_jax.types import Dataset, Episode
from maml_jax.utils.errors import UserError

__all__ = ['extreme_tasks', 'image_url', 'load_split']


class EvaluatedTask(NamedTuple):
  """One task with its predictions; W ways, S shots, Q queries per class."""

  label: str  # such as 'best 1'
  index: int  # among the tasks of the evaluation
  images: np.ndarray  # [W, S + Q, H, W, C] uint8
  shots: int
  predicted: np.ndarray  # [W, Q] labels
  class_names: list[str]  # [W]
  episode: Episode  # the images in 0..1


def load_split(
  evaluation: Evaluation,
) -> tuple[Dataset | None, list[str], str]:
  """Returns the evaluated split, its class names and ''.

  Or None, [] and the reason if it is not prepared on this machine.
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
  # Without WordNet IDs, such as ', n01532829'.
  return dataset, [re.sub(r'(?<=.), n[0-9]+$', '', n) for n in names], ''


def extreme_tasks(
  evaluation: Evaluation, count: int
) -> tuple[list[EvaluatedTask], str]:
  """Returns the `best_and_worst_tasks`, and the reason if there are none."""
  dataset, names, error = load_split(evaluation)
  if dataset is None:
    return [], error
  arrays = evaluation.arrays
  best, worst = best_and_worst_tasks(arrays['accuracy'], arrays['loss'], count)
  labels = {task: f'best {i}' for i, task in enumerate(best, start=1)}
  labels |= {task: f'worst {i}' for i, task in enumerate(worst, start=1)}
  # Results of earlier versions are on the data set of the training.
  result = {'data_root': None, **evaluation.result}
  error = 'Tasks cannot be shown:'
  if missing := [field for field in Phase._fields if field not in result]:
    return [], f'{error} the result lacks the fields {", ".join(missing)}.'
  phase = Phase(**{field: result[field] for field in Phase._fields})
  try:
    positions, _ = eval_task_indices(dataset, phase, max(labels) + 1)
  except UserError as e:
    return [], f'{error} {e}.'
  classes = task_classes(dataset, positions)
  if not np.array_equal(classes, arrays['classes'][: len(classes)]):
    name = result['data']
    differs = f'the prepared data set {name} differs from the evaluated one.'
    return [], f'{error} {differs}'
  tasks = []
  for i, label in labels.items():
    images = np.asarray(dataset.images[positions[i]])
    predicted = arrays['predicted'][i].reshape(phase.ways, phase.queries)
    own_names = [names[c] for c in classes[i]]
    episode = split_episode(images / 255, shots=phase.shots)
    about = phase.shots, predicted, own_names, episode
    tasks.append(EvaluatedTask(label, i, images, *about))
  return tasks, ''


def image_url(image: np.ndarray) -> str:
  """Returns an image [H, W, C] uint8 as a data URL: PNG, or JPEG for colors."""
  kind = 'png' if image.shape[-1] == 1 else 'jpeg'
  file = io.BytesIO()
  PIL.Image.fromarray(image.squeeze()).save(file, kind, quality=80)
  content = base64.b64encode(file.getvalue()).decode()
  return f'data:image/{kind};base64,{content}'
