"""The modes `adapt` and `predict` of the command line.

    python main.py --mode=adapt --checkpoint=C --support=DIR --query=DIR
    python main.py --mode=predict --model=OUTPUT/model.npz FILES

DIR/CLASS/ contains the images of a class; query images need no class folders.
"""

import contextlib
import itertools
import json
import os
import pathlib
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy.special import softmax

from maml_jax import data
from maml_jax.fewshot import contact_sheet
from maml_jax.fewshot.image_folders import (
  ImageReader,
  Query,
  SupportSet,
  find_queries,
  find_support,
  read_support,
)
from maml_jax.fewshot.predictions import (
  PREDICTION_FILES,
  LeaveOneOut,
  Prediction,
  describe_accuracy,
  format_table,
  measure_accuracy,
  summarize_accuracy,
  write_predictions,
)
from maml_jax.utils.console import escape_control, print_result, print_warning
from maml_jax.utils.errors import UserError
from maml_jax.utils.files import oserror_as_user_error, oserror_message

__all__ = [
  'MODEL_FILE',
  'adapt',
  'describe_left_out',
  'predict_left_out',
  'predict',
]

MODEL_FILE = 'model.npz'
CONTACT_SHEET_FILE = 'contact_sheet.png'
OUTPUT_FILES = (MODEL_FILE, CONTACT_SHEET_FILE, *PREDICTION_FILES)
READ_BATCH_SIZE = 256  # query images in memory at a time
MAX_LEFT_OUT = 40  # support images left out, one at a time, of 50 images
MAX_TABLE_ROWS = 40  # of printed tables; the files contain all rows


def adapt(flags: Any, config: ConfigDict) -> None:
  """Runs --mode=adapt: adapts a checkpoint to the classes of a folder.

  Args:
    flags: `checkpoint`, `support`, `query`, `paths`, `output`, `head` and
      `num_steps`.
    config: of the checkpoint; its `eval` section may differ.

  Raises:
    UserError: an argument is missing or invalid, or a file cannot be written.
    NonFiniteError: the adaptation diverged.
  """
  _check_adapt_flags(flags, config)
  folder = pathlib.Path(flags.support)
  class_files = find_support(folder)
  query_paths = [*(flags.query or ()), *flags.paths]
  queries = find_queries(query_paths)
  output = pathlib.Path(flags.output or _default_output(folder))
  _make_output_folder(output, [folder, *query_paths])
  reader = ImageReader(data.spec(config.data.name))
  support = read_support(class_files, reader)

  # Imports Flax and Orbax, which takes seconds; errors above come first.
  from maml_jax.fewshot import adaptation
  from maml_jax.utils.compilation_cache import enable_compilation_cache

  enable_compilation_cache(min_compile_seconds=0.0)
  learner = adaptation.load(
    flags.checkpoint, which=config.eval.checkpoint, config=config
  )
  program = adaptation.make_adaptation_program(
    learner, len(support.classes), flags.num_steps, flags.head
  )
  classifier = adaptation.fit_classifier(
    learner, program, support.pixels, support.labels, np.array(support.classes)
  )
  left_out = predict_left_out(learner, program, support)
  print(_describe_adaptation(program, support))
  metadata = {
    'model': str(output / MODEL_FILE),
    'support': str(folder.resolve()),
    'checkpoint': str(learner.path),
    **_adaptation_metadata(program, support),
    'leave_one_out': _report_leave_one_out(left_out, support),
  }
  digests = {picture.digest for picture in support.pictures}
  predictions = _predict_queries(classifier, queries, reader, digests)
  support_rows = _support_rows(classifier, support, left_out)
  with _replace_outputs(output) as new:
    classifier.save(new / MODEL_FILE)
    _report_predictions(new, metadata, predictions, reader.skipped)
    _save_contact_sheet(new, metadata, predictions, support_rows)
  if queries and not predictions:
    raise UserError('none of the query images is readable')


def predict(flags: Any, config: ConfigDict) -> None:
  """Runs --mode=predict: classifies images with a model saved by `adapt`.

  Args:
    flags: `model`, `paths` and `output`.
    config: None.

  Raises:
    UserError: an argument is missing or invalid, or no image is readable.
  """
  del config
  if not flags.model:
    raise UserError('--mode=predict needs --model=FILE, saved by --mode=adapt')
  if not flags.paths:
    raise UserError('--mode=predict needs image files or folders')
  model = pathlib.Path(flags.model)
  model = model / MODEL_FILE if model.is_dir() else model
  if not model.is_file():
    raise UserError(f'no such model: {model}')
  queries = find_queries(flags.paths)
  output = pathlib.Path(flags.output) if flags.output else None
  if output:
    if (output / MODEL_FILE).exists():
      raise UserError(
        f'--output={output} contains the results of --mode=adapt: use another '
        'folder'
      )
    _make_output_folder(output, flags.paths)

  # Imports Flax, which takes seconds; errors above come first.
  from maml_jax.fewshot.classifier import load_classifier
  from maml_jax.utils.compilation_cache import enable_compilation_cache

  enable_compilation_cache(min_compile_seconds=0.0)
  classifier = load_classifier(model)
  reader = ImageReader(data.spec(classifier.config.data.name))
  predictions = _predict_queries(classifier, queries, reader, set())
  if not predictions:
    raise UserError('none of the images is readable')
  if output:
    metadata = {'model': str(model)}
    with _replace_outputs(output) as new:
      _report_predictions(new, metadata, predictions, reader.skipped)
      _save_contact_sheet(new, metadata, predictions, [])
  else:
    for line in format_table(predictions):
      print_result(line)


def _check_adapt_flags(flags, config) -> None:
  if not flags.checkpoint:
    raise UserError('--mode=adapt needs --checkpoint=DIR')
  if not flags.support:
    raise UserError('--mode=adapt needs --support=DIR, with a folder per class')
  if config.data.name in data.REGRESSIONS:
    raise UserError(
      f'--checkpoint={flags.checkpoint} was trained on regression: use a '
      'checkpoint trained on images'
    )
  if flags.num_steps is not None and flags.num_steps < 0:
    raise UserError(f'--num_steps={flags.num_steps}: must be at least 0')


def _default_output(support: pathlib.Path) -> pathlib.Path:
  """Returns the folder of a support set in `adapted`, named like it.

  Support sets with the same name have numbered folders.
  """
  support = support.resolve()

  def is_usable(output):
    if not output.exists():
      return True
    try:
      metadata = json.loads((output / PREDICTION_FILES[1]).read_text())
      return metadata.get('support') == str(support)
    except (OSError, ValueError, AttributeError):  # of another program
      return False

  endings = ('' if n == 1 else f'-{n}' for n in itertools.count(1))
  outputs = (pathlib.Path('adapted', support.name + end) for end in endings)
  return next(filter(is_usable, outputs))


@contextlib.contextmanager
def _replace_outputs(output: pathlib.Path):
  """Replaces all files of an earlier run by those written to a new folder.

  Yields:
    The new folder. If the block fails, the earlier files stay.

  Raises:
    UserError: a file cannot be written.
  """
  with oserror_as_user_error(output):
    folder = tempfile.TemporaryDirectory(dir=output, prefix='.new-')
  with folder as name:
    new = pathlib.Path(name)
    try:
      yield new
    except UserError as error:  # users know the final names
      message = str(error).replace(str(new), str(output))
      raise UserError(message) from error
    files = sorted(path.name for path in new.iterdir())
    with oserror_as_user_error(output):
      for file in OUTPUT_FILES:
        (output / file).unlink(missing_ok=True)
      for file in files:
        (new / file).replace(output / file)
  print(f'saved in {escape_control(output)}: {", ".join(files)}')


def _make_output_folder(
  output: pathlib.Path, inputs: Iterable[str | os.PathLike]
) -> None:
  """Creates the output folder and checks that it is writable.

  Raises:
    UserError: it is not writable, or it is inside one of the inputs.
  """
  for source in inputs:
    if output.resolve().is_relative_to(pathlib.Path(source).resolve()):
      raise UserError(
        f'--output={output} is inside {source}: the next run would read its '
        'files as images'
      )
  try:
    output.mkdir(parents=True, exist_ok=True)
    probe = output / '.probe'
    probe.write_bytes(b'x')
    probe.unlink()
  except OSError as error:
    reason = oserror_message(error)
    raise UserError(f'cannot write to {output}: {reason}') from error


def predict_left_out(
  learner, program, support: SupportSet
) -> LeaveOneOut | None:
  """Returns predictions for left-out images; None if a class has only one."""
  from maml_jax.fewshot.adaptation import leave_one_out  # takes seconds

  labels = support.labels
  if support.class_sizes.min() < 2:
    return None
  # Fewer of large sets: the cost grows with both numbers.
  limit = max(MAX_LEFT_OUT // 4, MAX_LEFT_OUT * 50 // len(labels))
  n = min(len(labels), limit)
  rows = np.linspace(0, len(labels) - 1, n).astype(int)
  probabilities = leave_one_out(learner, program, support.pixels, labels, rows)
  num_correct = int((probabilities.argmax(-1) == labels[rows]).sum())
  return LeaveOneOut(rows, probabilities, num_correct)


def describe_left_out(
  left_out: LeaveOneOut | None, support: SupportSet
) -> tuple[dict | None, str, str]:
  """Describes the leave-one-out accuracy.

  Returns:
    `summarize_accuracy`, None if a class has a single image; the result as
    text; and a warning if it is not above chance, else ''.
  """
  name = 'leave-one-out accuracy on the support set'
  if left_out is None:
    single = np.flatnonzero(support.class_sizes < 2)
    classes = ', '.join(escape_control(support.classes[c]) for c in single)
    text = f'{name}: not available; classes with a single image: {classes}'
    return None, text, ''
  num_images, num_left_out = len(support.labels), len(left_out.rows)
  accuracy = summarize_accuracy(left_out.num_correct, num_left_out)
  note, warning = '', ''
  if num_left_out < num_images:
    note = f', measured on {num_left_out} of {num_images} images'
  chance = 1 / len(support.classes)
  if accuracy['interval'][0] <= chance:
    warning = (
      'the leave-one-out accuracy is not significantly above chance '
      f'({100 * chance:.0f} %): add more or clearer images, or use another '
      'checkpoint'
    )
  return accuracy, f'{name}: {describe_accuracy(accuracy)}{note}', warning


def _report_leave_one_out(
  left_out: LeaveOneOut | None, support: SupportSet
) -> dict | None:
  """Prints the leave-one-out accuracy and returns it for predictions.json."""
  accuracy, text, warning = describe_left_out(left_out, support)
  if accuracy is None:
    print(text)
  else:
    print_result(text)
  if warning:
    print_warning(warning)
  return accuracy


def _describe_adaptation(program, support: SupportSet) -> str:
  sizes = support.class_sizes
  low, high = sizes.min(), sizes.max()
  count = f'{low}' if low == high else f'{low} to {high}'
  phase = program.phase
  return (
    f'{len(sizes)} classes with {count} images each; {phase.num_steps} inner '
    f'steps, initial head: {program.head}, batch norm: {phase.norm}'
  )


def _adaptation_metadata(program, support: SupportSet) -> dict:
  """Returns what `_describe_adaptation` shows, for predictions.json."""
  sizes = support.class_sizes.tolist()
  return {
    'classes': dict(zip(support.classes, sizes, strict=True)),
    'head': program.head,
    'num_steps': program.phase.num_steps,
    'norm': program.phase.norm,
  }


def _predict_queries(
  classifier, queries: Sequence[Query], reader: ImageReader, digests: set[str]
) -> list[Prediction]:
  """Classifies all readable images, `READ_BATCH_SIZE` at a time.

  Args:
    classifier: a `Classifier`.
    queries: the images.
    reader: reads them.
    digests: of the support images.
  """
  names = [str(name) for name in classifier.classes]
  predictions = []
  for start in range(0, len(queries), READ_BATCH_SIZE):
    batch = queries[start : start + READ_BATCH_SIZE]
    truths = {query.path: query.truth(names) for query in batch}
    pictures = list(reader.read(truths))
    if not pictures:
      continue
    pixels = np.stack([picture.pixels for picture in pictures])
    rows = softmax(classifier.logits(pixels), axis=-1)
    for picture, row in zip(pictures, rows, strict=True):
      is_drawn = len(predictions) < contact_sheet.MAX_QUERY_TILES
      prediction = Prediction(
        str(picture.path),
        dict(zip(names, map(float, row), strict=True)),
        truths[picture.path],
        picture.digest in digests,
        picture.thumbnail if is_drawn else None,
      )
      predictions.append(prediction)
  for prediction in predictions:
    if prediction.in_support:
      print_warning(
        f'{prediction.file} is also in the support set: it does not count '
        'towards the accuracy'
      )
  return predictions


def _report_predictions(
  output: pathlib.Path,
  metadata: dict,
  predictions: Sequence[Prediction],
  skipped: dict[str, str],
) -> None:
  """Prints predictions and their accuracy and writes them to files."""
  shown = predictions[:MAX_TABLE_ROWS]
  for line in format_table(shown):
    print(line)
  if len(predictions) > len(shown):
    print(f'... and {len(predictions) - len(shown)} more in predictions.csv')
  accuracy = measure_accuracy(predictions)
  if accuracy:
    print_result(
      f'accuracy on the labeled query images: {describe_accuracy(accuracy)}'
    )
  metadata = {**metadata, 'skipped': skipped, 'accuracy': accuracy}
  write_predictions(output, metadata, predictions)


def _support_rows(
  classifier, support: SupportSet, left_out: LeaveOneOut | None
) -> list[contact_sheet.Row]:
  """Returns the support images with leave-one-out predictions, if available.

  Other images have the predictions of the adapted model.
  """
  probabilities = softmax(classifier.logits(support.pixels), axis=-1)
  if left_out:
    probabilities[left_out.rows] = left_out.probabilities
  return contact_sheet.support_rows(support, probabilities)


def _save_contact_sheet(
  output: pathlib.Path,
  metadata: dict,
  predictions: Sequence[Prediction],
  support_rows: Sequence[contact_sheet.Row],
) -> None:
  query = None
  if predictions:
    query = contact_sheet.query_row(predictions, measure_accuracy(predictions))
  subtitle = 'below each image: the most probable class and its probability'
  if support_rows and (accuracy := metadata['leave_one_out']):
    subtitle += (
      f'; support images: leave-one-out predictions ({accuracy["right"]} of '
      f'{accuracy["images"]} correct)'
    )
  elif support_rows:
    subtitle += '; support images: predictions for training images'
  title = escape_control(metadata.get('checkpoint', metadata['model']))
  sheet = contact_sheet.draw_contact_sheet(title, subtitle, support_rows, query)
  contact_sheet.save_contact_sheet(sheet, output / CONTACT_SHEET_FILE)
