"""Your own images: learn from folders of them, then answer for others.

    python main.py --mode=adapt --checkpoint=C --support=DIR --query=DIR
    python main.py --mode=predict --model=OUTPUT/model.npz FILES

DIR/CLASS/ holds the images of a class; what is asked for may lie in folders or
not. What cannot be read is named and left out.
"""

import csv
import io
import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from maml_jax import data
from maml_jax.data import images
from maml_jax.data.images import Picture, UnreadableImageError
from maml_jax.utils.console import escape_control, print_result, print_warning
from maml_jax.utils.errors import UserError
from maml_jax.utils.files import write_text

MODEL_FILE = 'model.npz'
READ_BATCH_SIZE = 256  # query images, so that any number fits into memory
MAX_SUPPORT_IMAGES = 1000  # images to learn from
MAX_LEFT_OUT = 40  # images to judge by
MAX_DRAWN_QUERIES = 180  # images that were asked for, on the contact sheet
MAX_TABLE_ROWS = 40  # of a table; all are in the files


class Query(NamedTuple):
  """An image to answer for, not read yet.

  Attributes:
    path: of the file.
    truth: the name of its folder, in the folder that was asked for; '' if it
      lies in none.
  """

  path: pathlib.Path
  truth: str


class Prediction(NamedTuple):
  """What a classifier says of an image.

  Attributes:
    file: as it was named.
    probabilities: by class.
    truth: the true class; '' where that is not known.
    in_support: whether it was learned from.
    thumbnail: uint8 [h, w, 3]; None of those that are not drawn.
  """

  file: str
  probabilities: dict[str, float]
  truth: str
  in_support: bool
  thumbnail: np.ndarray | None

  @property
  def predicted(self) -> str:
    return max(self.probabilities, key=self.probabilities.get)

  @property
  def probability(self) -> float:
    return self.probabilities[self.predicted]

  @property
  def is_correct(self) -> bool | None:
    return self.predicted == self.truth if self.truth else None


class LeaveOneOut(NamedTuple):
  """How well each of some support images is told from the others.

  Attributes:
    rows: [n] int, which images.
    probabilities: [n, W].
    right: how many of them were.
  """

  rows: np.ndarray
  probabilities: np.ndarray
  right: int


def adapt(flags, config) -> None:
  """Adapts a checkpoint to the classes of a folder; see `--help`.

  Args:
    flags: `checkpoint`, `support`, `query`, `paths`, `output`, `head`,
      `num_steps`.
    config: of the checkpoint, perhaps with another `eval` section.

  Raises:
    UserError: something of it is missing, of another kind, or cannot be
      written.
    NotFinite: of a parameter, after adaptation.
  """
  _check(flags, config)
  support = pathlib.Path(flags.support)
  classes = _classes(support)
  queries = _queries([*(flags.query or ()), *flags.paths])
  output = pathlib.Path(flags.output or f'adapted/{support.resolve().name}')
  _claim(output, [support, *(flags.query or ()), *flags.paths])
  skipped = {}
  pictures, label = _read_support(classes, data.spec(config.data.name), skipped)

  from maml_jax.fewshot import classifier
  from maml_jax.utils import compilation_cache  # seconds; complaints come first

  compilation_cache.enable_compilation_cache(least_seconds=0.0)
  loaded = classifier.load(
    flags.checkpoint, which=config.eval.checkpoint, config=config
  )
  program = classifier.make_adaptation_program(
    loaded, len(classes), flags.num_steps, flags.head
  )
  pixels = np.stack([picture.pixels for picture in pictures])
  learned = classifier.fit_classifier(
    loaded, program, pixels, label, np.array(list(classes))
  )
  learned.save(output / MODEL_FILE)
  left_out = _leave_out(loaded, program, pixels, label)
  print(_about(classes, label, program))
  facts = {
    'model': str(output / MODEL_FILE),
    'checkpoint': str(loaded.path),
    **_facts(classes, label, program),
    'leave_one_out': _judge(left_out, label, list(classes)),
  }
  known = {picture.digest for picture in pictures}
  answers = _answer(learned, queries, skipped, known)
  _finish(output, facts, answers, skipped)
  support_rows = _support_rows(
    list(classes), pictures, label, left_out, learned, pixels
  )
  _draw(output, facts, support_rows, answers)
  _name_files(output, answers, [MODEL_FILE])
  if queries and not answers:
    raise UserError('none of the images that were asked for can be read')


def predict(flags, config) -> None:
  """Answers for image files with a model that `adapt` has written.

  Args:
    flags: `model`, `paths`, `output`.
    config: None.

  Raises:
    UserError: no such file, no such model, or nothing that can be read.
  """
  if not flags.model:
    raise UserError('--mode=predict needs --model=FILE, left by --mode=adapt')
  if not flags.paths:
    raise UserError('--mode=predict needs images: name files or folders')
  queries = _queries(flags.paths)
  model = pathlib.Path(flags.model)
  model = model / MODEL_FILE if model.is_dir() else model
  if not model.is_file():
    raise UserError(f'no such model: {model}')
  if flags.output:
    output = pathlib.Path(flags.output)
    _claim(output, flags.paths)

  from maml_jax.fewshot import classifier
  from maml_jax.utils import compilation_cache

  compilation_cache.enable_compilation_cache(least_seconds=0.0)
  learned = classifier.load_classifier(model)
  skipped = {}
  answers = _answer(learned, queries, skipped, set())
  if not answers:
    raise UserError('none of the images that were asked for can be read')
  if flags.output:
    facts = {'model': str(model)}
    _finish(output, facts, answers, skipped)
    _draw(output, facts, [], answers)
    _name_files(output, answers, [])
  else:
    _table(answers, len(answers), print_result)


def _check(flags, config) -> None:
  if not flags.checkpoint:
    raise UserError('--mode=adapt needs --checkpoint=DIR, of a run or alone')
  if not flags.support:
    raise UserError('--mode=adapt needs --support=DIR, a folder per class')
  if config.data.name in data.REGRESSIONS:
    raise UserError(f'{flags.checkpoint} is of a regression, not of images')
  if flags.num_steps is not None and flags.num_steps < 0:
    raise UserError(f'--num_steps={flags.num_steps}: at least 0')


def _classes(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  """The files of each class, two classes or more."""
  if not folder.exists():
    raise UserError(f'no such folder: {folder}')
  if not folder.is_dir():
    raise UserError(
      f'{folder} is a file: --support names a folder with a folder of images '
      'for each class'
    )
  try:
    classes, beside = images.class_folders(folder)
  except OSError as error:
    raise UserError(f'cannot read {folder}: {error.strerror}') from error
  for path in beside:
    print_warning(f'left out {path}: it lies in no class folder')
  if len(classes) < 2:
    found = f'there is only {list(classes)[0]!r}' if classes else 'it has none'
    raise UserError(
      f'{folder} needs a folder of images for each of two classes or more; '
      f'{found}'
    )
  return classes


def _queries(paths: Sequence[str]) -> list[Query]:
  """The files that are named, and those in folders that are, each once."""
  found, seen = [], {}
  for path in map(pathlib.Path, paths):
    if path.is_dir():
      files = [
        Query(file, file.relative_to(path).parts[0])
        if len(file.relative_to(path).parts) > 1
        else Query(file, '')
        for file in images.files_below(path)
      ]
      if not files:
        raise UserError(f'{path} holds no files')
    elif path.exists():
      files = [Query(path, '')]
    else:
      raise UserError(f'no such file or folder: {path}')
    for query in files:
      real = os.path.realpath(query.path)
      if real in seen:
        print_warning(f'{query.path} is named twice, and answered once')
      else:
        seen[real] = query
        found.append(query)
  return found


def _claim(output: pathlib.Path, inputs: Iterable[str | os.PathLike]) -> None:
  """Makes the folder of what is to be written, and tries to write there."""
  for source in inputs:
    if output.resolve().is_relative_to(pathlib.Path(source).resolve()):
      raise UserError(
        f'--output={output} lies in {source}: what is written there would be '
        'taken for an image next time'
      )
  try:
    output.mkdir(parents=True, exist_ok=True)
    probe = output / '.probe'
    probe.write_bytes(b'x')
    probe.unlink()
  except OSError as error:
    raise UserError(f'cannot write to {output}: {error.strerror}') from error


def _read_support(
  classes: Mapping[str, Sequence[pathlib.Path]], spec, skipped: dict
) -> tuple[list[Picture], np.ndarray]:
  """Reads what is to be learned from: pictures, and the class of each [N]."""
  pictures, label = [], []
  most = max(MAX_SUPPORT_IMAGES // len(classes), 1)
  for c, (name, files) in enumerate(classes.items()):
    if len(files) > most:
      print_warning(
        f'of the {len(files)} files of {name}, {most} are learned from'
      )
      rows = np.linspace(0, len(files) - 1, most).astype(int)
      files = [files[row] for row in rows]
    read = list(_read(files, spec, skipped))
    if not read:
      raise UserError(f'class {name!r} has no image that can be read')
    pictures += read
    label += [c] * len(read)
  _name_repeated(pictures, label, list(classes))
  return pictures, np.array(label, np.int32)


def _read(files, spec, skipped: dict) -> Iterable[Picture]:
  for path in files:
    try:
      yield images.read_image(path, spec)
    except UnreadableImageError as error:
      skipped[str(path)] = str(error)
      print_warning(f'left out {path}: {error}')


def _name_repeated(pictures, label, names) -> None:
  first = {}
  for picture, c in zip(pictures, label, strict=True):
    path, other = first.setdefault(picture.digest, (picture.path, c))
    if path != picture.path:
      what = 'in two classes' if other != c else 'twice'
      print_warning(f'{path} and {picture.path} are the same image, {what}')


def _leave_out(loaded, program, pixels, label) -> LeaveOneOut | None:
  """Judges by images that were left out; None if a class has but one."""
  from maml_jax.fewshot.classifier import leave_one_out

  if np.bincount(label).min() < 2:
    return None
  n = min(len(label), max(MAX_LEFT_OUT // 4, MAX_LEFT_OUT * 50 // len(label)))
  rows = np.linspace(0, len(label) - 1, n).astype(int)
  probabilities = leave_one_out(loaded, program, pixels, label, rows)
  right = int((probabilities.argmax(-1) == label[rows]).sum())
  return LeaveOneOut(rows, probabilities, right)


def _judge(left_out: LeaveOneOut | None, label, names) -> dict | None:
  """Says what leaving out has shown, as a sign of what to expect."""
  if left_out is None:
    single = [names[c] for c in np.flatnonzero(np.bincount(label) < 2)]
    print(
      'leave-one-out accuracy: not known, for there is one image only of '
      + ', '.join(map(escape_control, single))
    )
    return None
  right, n = left_out.right, len(left_out.rows)
  low, high = wilson_interval(right, n)
  print_result(
    f'leave-one-out accuracy on the support set: {_share(right, n)}'
    + (f', of {len(label)} images' if n < len(label) else '')
  )
  if low <= 1 / len(names):
    print_warning(
      f'the support set tells {len(names)} classes apart no better than a '
      'guess may: give more or clearer images, or another checkpoint'
    )
  return {
    'right': right,
    'images': n,
    'accuracy': right / n,
    'interval': [low, high],
  }


def wilson_interval(right: int, n: int) -> tuple[float, float]:
  """The 95 % interval of a probability after `right` successes in n trials.

  Wilson 1927, "Probable inference, the law of succession, and statistical
  inference": it stays within 0..1, and has a width where all are right.
  """
  z = 1.959964
  centre = (right + z * z / 2) / (n + z * z)
  half = z / (n + z * z) * math.sqrt(right * (n - right) / n + z * z / 4)
  return max(centre - half, 0.0), min(centre + half, 1.0)


def _share(right: int, n: int) -> str:
  low, high = wilson_interval(right, n)
  return (
    f'{100 * right / n:.1f} % ({right} of {n}; 95 % interval '
    f'{100 * low:.0f} to {100 * high:.0f} %)'
  )


def _about(classes, label, program) -> str:
  sizes = np.bincount(label)
  heads = {
    'checkpoint': "the checkpoint's own head",
    'zero': 'a zero head',
    'prototype': 'a head of class means (prototypes)',
  }
  few = (
    f'{sizes.min()}'
    if sizes.min() == sizes.max()
    else (f'{sizes.min()} to {sizes.max()}')
  )
  return (
    f'{len(sizes)} classes, {few} images each: {program.phase.num_steps} '
    f'inner steps from {heads[program.head]}, batch norm {program.phase.norm}'
  )


def _facts(classes, label, program) -> dict:
  """`_about` for machines."""
  sizes = np.bincount(label).tolist()
  return {
    'classes': dict(zip(classes, sizes, strict=True)),
    'head': program.head,
    'num_steps': program.phase.num_steps,
    'norm': program.phase.norm,
  }


def _answer(learned, queries, skipped, known) -> list[Prediction]:
  """Answers for all that can be read, some at a time."""
  spec = data.spec(learned.config.data.name)
  names = [str(name) for name in learned.classes]
  answers = []
  for start in range(0, len(queries), READ_BATCH_SIZE):
    part = queries[start : start + READ_BATCH_SIZE]
    truth = {q.path: q.truth if q.truth in names else '' for q in part}
    pictures = list(_read(truth, spec, skipped))
    if not pictures:
      continue
    pixels = np.stack([picture.pixels for picture in pictures])
    for picture, row in zip(pictures, learned.answer(pixels), strict=True):
      answers.append(
        Prediction(
          str(picture.path),
          dict(zip(names, map(float, row), strict=True)),
          truth[picture.path],
          picture.digest in known,
          picture.thumbnail if len(answers) < MAX_DRAWN_QUERIES else None,
        )
      )
  for answer in answers:
    if answer.in_support:
      print_warning(
        f'{answer.file} is in the support set, too: its answer says nothing'
      )
  return answers


def _accuracy(answers: Sequence[Prediction]) -> dict | None:
  """Of those whose class is known and that were not learned from."""
  judged = [a.is_correct for a in answers if a.truth and not a.in_support]
  if not judged:
    return None
  low, high = wilson_interval(sum(judged), len(judged))
  return {
    'right': sum(judged),
    'images': len(judged),
    'accuracy': sum(judged) / len(judged),
    'interval': [low, high],
  }


def _finish(output, facts, answers, skipped) -> None:
  """Prints and writes the answers."""
  facts['skipped'] = skipped
  if not answers:
    return
  _table(answers, MAX_TABLE_ROWS, print)
  facts['accuracy'] = accuracy = _accuracy(answers)
  if accuracy:
    share = _share(accuracy['right'], accuracy['images'])
    print_result(f'accuracy, by the names of the folders: {share}')
  facts['predictions'] = [
    {
      'file': a.file,
      'class': a.predicted,
      'probability': a.probability,
      'truth': a.truth or None,
      'in_support': a.in_support,
      'probabilities': a.probabilities,
    }
    for a in answers
  ]
  lines = io.StringIO()
  table = csv.writer(lines, lineterminator='\n')
  table.writerow(['file', 'class', 'probability'])
  for a in answers:
    row = (
      escape_control(a.file),
      escape_control(a.predicted),
      f'{a.probability:.6f}',
    )
    table.writerow(row)
  write_text(output / 'predictions.csv', lines.getvalue())
  write_text(output / 'predictions.json', json.dumps(facts, indent=2))


def _table(answers: Sequence[Prediction], most: int, say) -> None:
  shown = answers[:most]
  width = min(max(len(escape_control(a.file)) for a in shown), 60)
  column = min(max(len(escape_control(a.predicted)) for a in shown), 30)
  for a in shown:
    truth = (
      '' if a.is_correct is not False else f'  (is {escape_control(a.truth)})'
    )
    say(
      f'{escape_control(a.file):{width}}  {escape_control(a.predicted):{column}} '
      f'{100 * a.probability:6.1f} %{truth}'
    )
  if len(answers) > most:
    print(f'... and {len(answers) - most} more in predictions.csv')


def _support_rows(names, pictures, label, left_out, learned, pixels):
  """Rows of a contact sheet: each support image as it was judged left out."""
  from maml_jax.fewshot import contact_sheet

  probabilities = learned.answer(pixels)
  if left_out:
    probabilities[left_out.rows] = left_out.probabilities
  tiles = {name: [] for name in names}
  for picture, c, row in zip(pictures, label, probabilities, strict=True):
    best = int(row.argmax())
    tiles[names[c]].append(
      contact_sheet.Tile(
        picture.thumbnail,
        escape_control(picture.path.name),
        escape_control(names[best]),
        float(row[best]),
        best == c,
      )
    )
  return [
    contact_sheet.Row(escape_control(name), row) for name, row in tiles.items()
  ]


def _draw(output, facts, support_rows, answers) -> None:
  from maml_jax.fewshot import contact_sheet

  query = None
  if answers:
    accuracy = facts.get('accuracy')
    heading = f'query: {len(answers)} images'
    if accuracy:
      heading += f', {accuracy["right"]} of {accuracy["images"]} right'
    if len(answers) > MAX_DRAWN_QUERIES:
      heading += f' (the first {MAX_DRAWN_QUERIES} are shown)'
    query = contact_sheet.Row(
      heading,
      [
        contact_sheet.Tile(
          a.thumbnail,
          escape_control(pathlib.Path(a.file).name),
          escape_control(a.predicted),
          a.probability,
          a.is_correct,
        )
        for a in answers[:MAX_DRAWN_QUERIES]
      ],
    )
  remark = 'below each image: the most probable class and its probability'
  if support_rows:
    judged = facts['leave_one_out']
    remark += (
      f'; of a support image, as if it had been left out ({judged["right"]} '
      f'of {judged["images"]} right)'
      if judged
      else '; support images were learned from'
    )
  title = escape_control(facts.get('checkpoint', facts['model']))
  sheet = contact_sheet.draw(title, remark, support_rows, query)
  path = output / 'contact_sheet.png'
  try:
    contact_sheet.save(sheet, path)
  except OSError as error:
    raise UserError(f'cannot write {path}: {error.strerror}') from error


def _name_files(output: pathlib.Path, answers, files: list[str]) -> None:
  files = ['contact_sheet.png', *files]
  if answers:
    files = ['predictions.csv', 'predictions.json', *files]
  print(f'in {escape_control(output)}: {", ".join(files)}')
