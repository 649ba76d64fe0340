"""Few-shot image data sets, prepared once and memory-mapped afterwards.

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
from maml_jax.utils.files import expand_path, oserror_message

__all__ = [
  'REGRESSIONS',
  'SPECS',
  'SPLITS',
  'DatasetSpec',
  'class_names',
  'load_dataset',
  'prepare',
  'prepared_dir',
  'prepared_roots',
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

# Regression problems without files: `sample_episode` of these modules generates
# tasks.
REGRESSIONS = {'sinusoid': sinusoid}

PathLike = str | os.PathLike


def spec(name: str) -> DatasetSpec:
  """Returns the specification of a data set: image shape, channel means, ...

  Raises:
    UserError: there is no such data set.
  """
  check_choice('data set', name, SPECS)
  return SPECS[name]


def prepared_dir(name: str, data_dir: PathLike | None = None) -> Path:
  """Returns the directory of a prepared data set, whether or not it exists.

  Args:
    name: one of `SPECS`.
    data_dir: the root directory of prepared data sets; default: the environment
      variable MAML_JAX_DATA, else ~/.cache/maml_jax.
  """
  return _data_root(data_dir) / name / spec(name).version


def prepared_roots(name: str, data_dir: PathLike | None = None) -> list[Path]:
  """Returns every `data_dir` under which a data set is already prepared.

  The list has at most one entry, except for user-provided data sets, which have
  one for each image directory.
  """
  root = _data_root(data_dir)
  candidates = [root]
  if spec(name).user_provided:
    candidates += sorted(root.glob(f'{name}/*'))
  return [path for path in candidates if prepared_dir(name, path).exists()]


def load_dataset(
  name: str, split: str, data_dir: PathLike | None = None
) -> Dataset:
  """Loads one split of a prepared data set.

  Missing or damaged arrays are decoded again from the TFDS files. A generated
  data set is prepared on first use.

  Args:
    name: one of `SPECS`.
    split: 'train', 'val' or 'test'; no two of them share a class.
    data_dir: the root directory of prepared data sets, see `prepared_dir`; or,
      for a user-provided data set, the directory of the images, which is
      prepared on first use.

  Returns:
    A `Dataset` of NumPy arrays: `images` uint8 [M, H, W, C], memory-mapped,
    `index` int32 [classes, max], `size` int32 [classes].

  Raises:
    UserError: there is no such data set or split, or it is not prepared.
  """
  dataset_spec = spec(name)
  check_choice('split', split, SPLITS)
  data_dir = _resolve_data_dir(dataset_spec, data_dir)
  directory = prepared_dir(name, data_dir)
  dataset = store.read_arrays(directory, dataset_spec, split)
  if dataset is None:
    if (arrays := store.arrays_dir(directory, split)).exists():
      warnings.warn(f'{arrays} is damaged: rebuilding it', stacklevel=2)
    _rebuild_arrays(dataset_spec, split, directory, data_dir)
    dataset = store.read_arrays(directory, dataset_spec, split)
    assert dataset is not None
  return dataset


def class_names(
  name: str, split: str, data_dir: PathLike | None = None
) -> list[str]:
  """Returns the names of the classes, in the order of `Dataset.index`.

  Args:
    name: see `load_dataset`.
    split: see `load_dataset`.
    data_dir: see `load_dataset`.

  Raises:
    UserError: there is no such data set or split, or it is not prepared.
  """
  load_dataset(name, split, data_dir)
  data_dir = _resolve_data_dir(spec(name), data_dir)
  return list(store.read_classes(prepared_dir(name, data_dir), split))


def prepare(
  name: str,
  source: PathLike | None = None,
  data_dir: PathLike | None = None,
) -> Path:
  """Prepares a data set from source files and replaces an existing one.

  Args:
    name: one of `SPECS`.
    source: a directory with one of the layouts in `spec(name).layout`; None for
      a generated data set.
    data_dir: the root directory of prepared data sets, see `prepared_dir`; a
      user-provided data set defaults to a separate one for each `source`.

  Returns:
    The directory of the prepared data set.

  Raises:
    UserError: `source` does not have the expected content, or the directory
      cannot be written.
  """
  dataset_spec = spec(name)
  if dataset_spec.generated and source is not None:
    raise UserError(
      f'{name} is generated and takes no source files: omit --from {source}'
    )
  if dataset_spec.user_provided and source is not None and data_dir is None:
    data_dir = _user_data_dir(name, source)
  splits = _find_splits(dataset_spec, source, data_dir)
  verify_counts(dataset_spec, splits)
  directory = prepared_dir(name, data_dir)
  try:
    store.write_dataset(directory, dataset_spec, splits)
  except OSError as error:
    raise UserError(
      f'{name}: cannot write {directory}: {oserror_message(error)}'
    ) from error
  except RuntimeError as error:  # from array_record
    reason = printable(str(error).partition(';')[0])
    raise UserError(f'{name}: cannot write {directory}: {reason}') from error
  return directory


def _data_root(data_dir: PathLike | None) -> Path:
  root = data_dir or os.environ.get('MAML_JAX_DATA') or '~/.cache/maml_jax'
  return expand_path(root)


def _user_data_dir(name: str, source: PathLike) -> Path:
  """Returns the `data_dir` for one image directory: ROOT/NAME/SOURCE-HASH."""
  path = expand_path(source).resolve()
  digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
  return _data_root(None) / name / f'{path.name}-{digest}'


def _resolve_data_dir(
  dataset_spec: DatasetSpec, data_dir: PathLike | None
) -> PathLike | None:
  """Returns the root directory of prepared data for a `data_dir`.

  If `data_dir` is the image directory of a user-provided data set, prepares it
  on first use.
  """
  name = dataset_spec.name
  if (
    not dataset_spec.user_provided
    or not data_dir
    or prepared_dir(name, data_dir).exists()
  ):
    return data_dir
  images = expand_path(data_dir)
  if not images.is_dir():
    raise UserError(f'{name}: no such directory: {images}')
  user_dir = _user_data_dir(name, images)
  if not prepared_dir(name, user_dir).exists():
    print(f'{name}: first use of {images}: preparing its images in {user_dir}')
    prepare(name, images)
  return user_dir


def _find_splits(
  dataset_spec: DatasetSpec,
  source: PathLike | None,
  data_dir: PathLike | None,
) -> Splits:
  """Returns the records of each split; raises UserError if there are none."""
  if dataset_spec.generated:
    return dataset_spec.find_records(None)
  if source is None:
    problem = 'no source directory given'
  elif not (path := expand_path(source)).exists():
    problem = f'no such directory: {path}'
  else:
    splits = dataset_spec.find_records(path)
    if any(splits.values()):
      return splits
    problem = f'no images of this data set found in {path}'
  help_text = _preparation_help(dataset_spec, data_dir)
  raise UserError(f'{dataset_spec.name}: {problem}\n{help_text}')


def _rebuild_arrays(
  dataset_spec: DatasetSpec,
  split: str,
  directory: Path,
  data_dir: PathLike | None,
) -> None:
  """Rebuilds missing or damaged arrays; raises UserError if it cannot."""
  if dataset_spec.generated:
    prepare(dataset_spec.name, data_dir=data_dir)
    return
  problem = f'is not prepared: {directory} does not exist'
  if directory.exists():
    try:
      store.write_arrays(directory, dataset_spec, split)
      return
    except Exception as error:  # damaged files can raise nearly anything
      problem = f'cannot be read from {directory}: {error}'
  help_text = _preparation_help(dataset_spec, data_dir)
  raise UserError(f'{dataset_spec.name} {problem}\n{help_text}')


def _preparation_help(
  dataset_spec: DatasetSpec, data_dir: PathLike | None
) -> str:
  """Returns the command that prepares a data set, and the accepted layouts."""
  data_dir_flag = f' --data_dir {data_dir}' if data_dir else ''
  alternative = (
    '\nor set --config.data.root=DIR' if dataset_spec.user_provided else ''
  )
  lines = dataset_spec.layout.splitlines()
  layouts = ''.join(f'\n  - {line}' for line in lines)
  return (
    'prepare it with'
    f'\n  python -m maml_jax.data prepare {dataset_spec.name} --from DIR'
    f'{data_dir_flag}{alternative}'
    f'\nwhere DIR contains one of:{layouts}'
  )
