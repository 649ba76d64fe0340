"""Few-shot image data sets, prepared once and memory-mapped.

    python -m maml_jax.data list
    python -m maml_jax.data prepare mini_imagenet --from DIR

    train = data.load_dataset('mini_imagenet', 'train')
"""

import difflib
import os
from pathlib import Path

from maml_jax.data import glyphs, mini_imagenet, omniglot, source, store
from maml_jax.data.source import SPLITS, Spec
from maml_jax.errors import UserError
from maml_jax.types import Dataset

__all__ = [
  'SPLITS', 'Spec', 'class_names', 'default_dir', 'is_prepared', 'load_dataset',
  'names', 'prepare', 'spec',
]

_REGISTRY = {module.SPEC.name: module.SPEC for module in (glyphs, mini_imagenet, omniglot)}


def names() -> tuple[str, ...]:
  """Names of the data sets there are."""
  return tuple(_REGISTRY)


def spec(name: str) -> Spec:
  """The facts about data set `name`: image shape, channel means, ..."""
  return _REGISTRY[_choose(name, _REGISTRY, 'data set')]


def default_dir() -> Path:
  """Where prepared data are kept: $MAML_JAX_DATA, else ~/.cache/maml_jax."""
  return Path(os.environ.get('MAML_JAX_DATA') or '~/.cache/maml_jax')


def load_dataset(
  name: str, split: str, data_dir: str | os.PathLike | None = None
) -> Dataset:
  """Loads one split of a prepared data set.

  Args:
    name: one of `names()`.
    split: 'train', 'val' or 'test'; they share no class.
    data_dir: where prepared data are kept; by default `default_dir()`.

  Returns:
    A `Dataset` of NumPy arrays: `image` uint8 [M, H, W, C] memory-mapped, in
    order of class, `index` int32 [classes, max] and `size` int32 [classes].

  Raises:
    UserError: there is no such data set or split, or it is not prepared.
  """
  facts = spec(name)
  _choose(split, SPLITS, 'split')
  root = _root(facts, data_dir)
  dataset = store.read_arrays(root, facts, split)
  if dataset is None:
    if not store.is_written(root):
      if not facts.automatic:
        raise UserError('TODO')
      prepare(name, data_dir=data_dir)
    store.write_arrays(root, facts, split)
    dataset = store.read_arrays(root, facts, split)
  return dataset


def prepare(
  name: str,
  source: str | os.PathLike | None = None,
  data_dir: str | os.PathLike | None = None,
) -> Path:
  """Prepares a data set from the files in `source`, replacing an earlier one.

  Args:
    name: one of `names()`.
    source: a directory that holds one of the layouts in `spec(name).layout`.
    data_dir: where prepared data are kept; by default `default_dir()`.

  Returns:
    The directory of the prepared data set.

  Raises:
    UserError: `source` does not hold what is expected.
  """
  from maml_jax.data.source import verify
  facts = spec(name)
  splits = facts.source(None if source is None else Path(source))
  verify(facts, splits)
  root = _root(facts, data_dir)
  store.write(root, facts, splits)
  return root


def _root(facts: Spec, data_dir: str | os.PathLike | None) -> Path:
  base = Path(data_dir or default_dir()).expanduser()
  return base / facts.name / facts.version


def _choose(name: str, choices, kind: str) -> str:
  if name in choices:
    return name
  close = difflib.get_close_matches(name, choices, 1)
  hint = f'; did you mean {close[0]!r}?' if close else ''
  raise UserError(f'unknown {kind} {name!r}{hint} (there are: {", ".join(choices)})')
