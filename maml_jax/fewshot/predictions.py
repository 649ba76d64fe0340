"""Predictions of image files: accuracy, tables, predictions.csv and .json."""

import csv
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from maml_jax.evaluation.statistics import wilson_interval
from maml_jax.utils.console import escape_control
from maml_jax.utils.files import write_text

__all__ = [
  'PREDICTION_FILES',
  'LeaveOneOut',
  'Prediction',
  'describe_accuracy',
  'format_table',
  'measure_accuracy',
  'summarize_accuracy',
  'write_predictions',
]


PREDICTION_FILES = ('predictions.csv', 'predictions.json')


class Prediction(NamedTuple):
  """The prediction for one image file.

  Attributes:
    file: the path as it was given.
    probabilities: the probability of each class.
    truth: the true class; '' if unknown.
    in_support: whether the same image is in the support set.
    thumbnail: uint8 [h, w, 3]; None if it is not on the contact sheet.
  """

  file: str
  probabilities: dict[str, float]
  truth: str
  in_support: bool
  thumbnail: np.ndarray | None

  @property
  def predicted(self) -> str:
    """The most probable class."""
    return max(self.probabilities, key=self.probabilities.__getitem__)

  @property
  def probability(self) -> float:
    """The probability of the predicted class."""
    return self.probabilities[self.predicted]

  @property
  def is_correct(self) -> bool | None:
    """Whether the predicted class is the true one; None if unknown."""
    return self.predicted == self.truth if self.truth else None


class LeaveOneOut(NamedTuple):
  """Predictions for support images, each after adaptation to all the others.

  Attributes:
    rows: [n] int, positions of the images in the support set.
    probabilities: [n, W].
    num_correct: number of correct predictions.
  """

  rows: np.ndarray
  probabilities: np.ndarray
  num_correct: int


def summarize_accuracy(num_correct: int, num_images: int) -> dict:
  """Returns an accuracy and its 95 % confidence interval, for JSON."""
  return {
    'right': num_correct,
    'images': num_images,
    'accuracy': num_correct / num_images,
    'interval': list(wilson_interval(num_correct, num_images)),
  }


def measure_accuracy(predictions: Sequence[Prediction]) -> dict | None:
  """Returns `summarize_accuracy` of the images whose class is known.

  Support images do not count. Returns None if no image is left.
  """
  outcomes = [
    p.predicted == p.truth for p in predictions if p.truth and not p.in_support
  ]
  return summarize_accuracy(sum(outcomes), len(outcomes)) if outcomes else None


def describe_accuracy(accuracy: Mapping) -> str:
  """Returns the result of `summarize_accuracy` as text."""
  low, high = accuracy['interval']
  return (
    f'{100 * accuracy["accuracy"]:.1f} % ({accuracy["right"]} of '
    f'{accuracy["images"]}; 95 % confidence interval {100 * low:.0f} to '
    f'{100 * high:.0f} %)'
  )


def format_table(predictions: Sequence[Prediction]) -> list[str]:
  """Returns one line per prediction: file, class, probability, true class."""
  files = [escape_control(p.file) for p in predictions]
  classes = [escape_control(p.predicted) for p in predictions]
  file_width = min(max(map(len, files), default=0), 60)
  class_width = min(max(map(len, classes), default=0), 30)
  lines = []
  for file, name, p in zip(files, classes, predictions, strict=True):
    line = (
      f'{file:{file_width}}  {name:{class_width}} {100 * p.probability:6.1f} %'
    )
    if p.is_correct is False:
      line += f'  (true class: {escape_control(p.truth)})'
    lines.append(line)
  return lines


def write_predictions(
  folder: pathlib.Path, metadata: Mapping, predictions: Sequence[Prediction]
) -> None:
  """Writes predictions.json and, if there are predictions, predictions.csv.

  Args:
    folder: where to write.
    metadata: the other entries of predictions.json.
    predictions: one row or entry each.

  Raises:
    UserError: a file cannot be written.
  """
  text = io.StringIO()
  table = csv.writer(text, lineterminator='\n')
  table.writerow(['file', 'class', 'probability'])
  for p in predictions:
    file, name = escape_control(p.file), escape_control(p.predicted)
    table.writerow([file, name, f'{p.probability:.6f}'])
  if predictions:
    write_text(folder / PREDICTION_FILES[0], text.getvalue())
  entries = [
    {
      'file': p.file,
      'class': p.predicted,
      'probability': p.probability,
      'truth': p.truth or None,
      'in_support': p.in_support,
      'probabilities': p.probabilities,
    }
    for p in predictions
  ]
  content = {**metadata, 'predictions': entries}
  write_text(folder / PREDICTION_FILES[1], json.dumps(content, indent=2))
