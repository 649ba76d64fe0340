"""Few-shot image data sets, prepared once and memory-mapped from then on.

python -m maml_jax.data list
python -m maml_jax.data prepare mini_imagenet --from DIR

train = data.load_dataset('mini_imagenet', 'train')
"""

import hashlib
import os
import warnings
from pathlib import Path

from maml_jax.data import store
from maml_jax.data.datasets import (
  cifar_fs,
  cub,
  fc100,
  folder,
  glyphs,
  inat2017,
  mini_imagenet,
  omniglot,
  sinusoid,
  tiered_imagenet,
)
from maml_jax.data.records import SPLITS, DatasetSpec, Splits, verify_counts
from maml_jax.types import Dataset
from maml_jax.utils.errors import UserError, check_choice, printable
from maml_jax.utils.files import oserror_message

__all__ = [
  'FUNCTIONS',
  'SPECS',
  'SPLITS',
  'Spec',
  'class_names',
  'load_dataset',
  'places',
  'prepare',
  'root',
  'spec',
]

SPECS: dict[str, DatasetSpec] = {
  module.SPEC.name: module.SPEC
  for module in (
    glyphs,
    omniglot,
    mini_imagenet,
    tiered_imagenet,
    cifar_fs,
    fc100,
    folder,
    cub,
    inat2017,
  )
}

# Without images: `sample_episode` of these modules draws tasks from nothing.
REGRESSIONS = {'sinusoid': sinusoid}

PathLike = str | os.PathLike


def spec(name: str) -> DatasetSpec:
  """The facts about a data set: image shape, channel means, layout, ..."""
  check_choice('data set', name, SPECS)
  return SPECS[name]


def prepared_dir(name: str, data_dir: PathLike | None = None) -> Path:
  """The directory of a prepared data set, whether or not it exists.

  Args:
    name: one of `SPECS`.
    data_dir: where prepared data are kept; by default the environment variable
      MAML_JAX_DATA, else ~/.cache/maml_jax.
  """
  return _base(data_dir) / name / spec(name).version


def prepared_dirs(name: str, data_dir: PathLike | None = None) -> list[Path]:
  """The places to give as `data_dir` where a data set is prepared.

  There is one at most, but of a personal data set one for each directory.
  """
  base, facts = _base(data_dir), spec(name)
  found = (
    [base, *sorted(base.glob(f'{name}/*'))] if facts.user_provided else [base]
  )
  return [place for place in found if prepared_dir(name, place).exists()]


def load_dataset(
  name: str, split: str, data_dir: PathLike | None = None
) -> Dataset:
  """Loads one split of a prepared data set.

  Arrays that are missing or damaged are decoded anew from the TFDS files. A
  data set that needs no files of yours is prepared on first use.

  Args:
    name: one of `SPECS`.
    split: 'train', 'val' or 'test'; they share no class.
    data_dir: where prepared data are kept, see `root`; or the directory of the
      images of a personal data set, which is then prepared if it is not.

  Returns:
    A `Dataset` of NumPy arrays, `image` uint8 [M, H, W, C], memory-mapped,
    `index` int32 [classes, max], `size` int32 [classes].

  Raises:
    UserError: there is no such data set or split, or it is not prepared.
  """
  facts = spec(name)
  check_choice('split', split, SPLITS)
  data_dir = _resolve(facts, data_dir)
  folder = prepared_dir(name, data_dir)
  dataset = store.read_arrays(folder, facts, split)
  if dataset is None:
    if (damaged := store.arrays_dir(folder, split)).exists():
      warnings.warn(f'{damaged} is damaged: it is made anew', stacklevel=2)
    _restore(facts, split, folder, data_dir)
    dataset = store.read_arrays(folder, facts, split)
  return dataset


def class_names(
  name: str, split: str, data_dir: PathLike | None = None
) -> list[str]:
  """Names of the classes, in the order of `Dataset.index`."""
  load_dataset(name, split, data_dir)
  data_dir = _resolve(spec(name), data_dir)
  return list(store.read_classes(prepared_dir(name, data_dir), split))


def prepare(
  name: str,
  source: PathLike | None = None,
  data_dir: PathLike | None = None,
) -> Path:
  """Prepares a data set from the files in `source`, replacing an earlier one.

  Args:
    name: one of `SPECS`.
    source: a directory that holds one of the layouts in `spec(name).layout`;
      not needed by a data set that is made from nothing.
    data_dir: where prepared data are kept, see `root`; by default a place of
      its own for each directory of a personal data set.

  Returns:
    The directory of the prepared data set.

  Raises:
    UserError: `source` does not hold what is expected.
  """
  facts = spec(name)
  if facts.generated and source is not None:
    raise UserError(f'{name} is made from no files: leave out --from {source}')
  if facts.user_provided and source is not None and data_dir is None:
    data_dir = _own_place(name, source)
  splits = _find(facts, source, data_dir)
  verify_counts(facts, splits)
  folder = prepared_dir(name, data_dir)
  try:
    store.write_dataset(folder, facts, splits)
  except OSError as error:
    raise UserError(
      f'{name}: cannot write {folder}: {oserror_message(error)}'
    ) from error
  except RuntimeError as error:  # of array_record
    reason = printable(str(error).partition(';')[0])
    raise UserError(f'{name}: cannot write {folder}: {reason}') from error
  return folder


def _base(data_dir: PathLike | None) -> Path:
  base = data_dir or os.environ.get('MAML_JAX_DATA') or '~/.cache/maml_jax'
  return Path(base).expanduser()


def _own_place(name: str, source: PathLike) -> Path:
  """The place of what is prepared from one directory: .../NAME-HASH."""
  path = Path(source).expanduser().resolve()
  digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
  return _base(None) / name / f'{path.name}-{digest}'


def _resolve(facts: DatasetSpec, data_dir: PathLike | None) -> PathLike | None:
  """Where a data set is prepared, if `data_dir` may be the one of its images.

  Prepares it first, if it is not yet.
  """
  if (
    not facts.user_provided
    or not data_dir
    or prepared_dir(facts.name, data_dir).exists()
  ):
    return data_dir
  images = Path(data_dir).expanduser()
  if not images.is_dir():
    raise UserError(f'{facts.name}: no such directory: {images}')
  place = _own_place(facts.name, images)
  if not prepared_dir(facts.name, place).exists():
    print(f'{facts.name}: preparing the images of {images}, once, in {place}')
    prepare(facts.name, images)
  return place


def _find(
  facts: DatasetSpec, directory: PathLike | None, data_dir: PathLike | None
) -> Splits:
  """Lists the records of each split; there is at least one."""
  if facts.generated:
    return facts.source(None)
  if directory is None:
    problem = 'no directory given'
  elif not (path := Path(directory).expanduser()).exists():
    problem = f'no such directory: {path}'
  else:
    splits = facts.source(path)
    if any(splits.values()):
      return splits
    problem = f'found none of its images in {path}'
  raise UserError(f'{facts.name}: {problem}\n{_advice(facts, data_dir)}')


def _restore(
  facts: DatasetSpec, split: str, folder: Path, data_dir: PathLike | None
) -> None:
  """Makes arrays that are missing or damaged, if there is anything to."""
  if facts.generated:
    prepare(facts.name, data_dir=data_dir)
    return
  problem = f'is not prepared: there is no {folder}'
  if folder.exists():
    try:
      return store.write_arrays(folder, facts, split)
    except Exception as error:  # Damaged files can raise nearly anything.
      problem = f'cannot be read from {folder}: {error}'
  raise UserError(f'{facts.name} {problem}\n{_advice(facts, data_dir)}')


def _advice(facts: DatasetSpec, data_dir: PathLike | None) -> str:
  place = f' --data_dir {data_dir}' if data_dir else ''
  naming = (
    '\nor name DIR by --config.data.root=DIR' if facts.user_provided else ''
  )
  layouts = ''.join(f'\n  - {line}' for line in facts.layout.splitlines())
  return (
    'prepare it with'
    f'\n  python -m maml_jax.data prepare {facts.name} --from DIR{place}'
    f'{naming}'
    f'\nwhere DIR holds one of:{layouts}'
  )
