"""Saving and loading the parameters of any learner, without the trainer.

save_params('model.npz', params, stats)
params, stats = load_params('model.npz', learner)
"""

import json
import os
import pathlib
import zipfile

import jax
import jax.numpy as jnp
import numpy as np

from maml_jax.inner_loop import flatten, is_per_step
from maml_jax.learner import Learner
from maml_jax.types import INNER, Array, PyTree
from maml_jax.utils.errors import UserError
from maml_jax.utils.files import oserror_as_user_error, replace_file

__all__ = ['load_params', 'save_params']

FORMAT_VERSION = 1
METADATA = 'metadata'
KEY_TYPES = ('threefry2x32', 'rbg', 'unsafe_rbg')


def save_params(path: str | os.PathLike, params: PyTree, stats: PyTree) -> None:
  """Saves parameters, learned quantities and statistics to one file.

  An existing file is replaced atomically.

  Args:
    path: such as 'model.npz'.
    params: the meta-parameters, any pytree of arrays.
    stats: the statistics.

  Raises:
    UserError: the file cannot be written.
  """
  path = pathlib.Path(path)
  flat, _ = flatten({'params': params, 'stats': stats})
  dtypes = {name: str(x.dtype) for name, x in flat.items()}
  metadata = json.dumps({'format': FORMAT_VERSION, 'dtypes': dtypes})
  arrays = {METADATA: np.array(metadata)}
  arrays |= {name: _to_numpy(x) for name, x in flat.items()}
  with (
    oserror_as_user_error(path),
    replace_file(path) as new,
    new.open('wb') as file,
  ):
    np.savez(file, allow_pickle=False, **arrays)


def load_params(
  path: str | os.PathLike, learner: Learner
) -> tuple[PyTree, PyTree]:
  """Loads what `save_params` has saved.

  Values that belong to inner steps keep the number of steps they were trained
  with, whatever that of the learner.

  Args:
    path: the file.
    learner: a learner with the same model; `learner.init` gives the structure.

  Returns:
    The meta-parameters and the statistics.

  Raises:
    UserError: the file is missing or damaged, or of another model.
  """
  wanted, unflatten = flatten(
    dict(
      zip(
        ('params', 'stats'),
        jax.eval_shape(learner.init, jax.random.key(0)),
        strict=True,
      )
    )
  )
  arrays, dtypes = _read(path)
  for kind, names in (
    ('lacks', wanted.keys() - arrays.keys()),
    ('has unknown', arrays.keys() - wanted.keys()),
  ):
    if names:
      raise UserError(
        f'{path} {kind} {", ".join(sorted(names))}: it belongs to another '
        'model, or to other settings of the inner loop'
      )
  values = {}
  for name, like in wanted.items():
    x = _from_numpy(arrays[name], dtypes.get(name, ''), like)
    inner_path = name.removeprefix(f'params/{INNER}/')
    skip = int(inner_path != name and is_per_step(learner.inner, inner_path))
    if x.shape[skip:] != like.shape[skip:] or x.dtype != like.dtype:
      raise UserError(
        f'{path}: {name} is {x.dtype}{list(x.shape)}, expected '
        f'{like.dtype}{list(like.shape)}: it belongs to another model'
      )
    values[name] = x
  tree = unflatten(values)
  return tree['params'], tree['stats']


def _read(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict]:
  try:
    # np.load alone would leave a damaged file open.
    with open(path, 'rb') as opened:
      with np.load(opened, allow_pickle=False) as file:
        arrays = dict(file)
    metadata = json.loads(str(arrays.pop(METADATA)))
    if metadata['format'] != FORMAT_VERSION:
      raise ValueError(f'format {metadata["format"]} is not supported')
    return arrays, dict(metadata['dtypes'])
  except FileNotFoundError:
    raise UserError(f'no such file: {path}') from None
  except (
    AttributeError,
    EOFError,
    KeyError,
    OSError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
  ) as error:
    raise UserError(f'{path} is not a file of save_params: {error}') from error


def _to_numpy(x: Array) -> np.ndarray:
  """Converts an array of any dtype to one that NumPy can store."""
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  array = np.asarray(x)
  is_extended = array.dtype.kind == 'V'  # such as bfloat16
  return array.view(f'u{array.dtype.itemsize}') if is_extended else array


def _from_numpy(x: np.ndarray, dtype: str, like) -> Array:
  if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
    names = {str(jax.random.key(0, impl=n).dtype): n for n in KEY_TYPES}
    data = jnp.asarray(x)
    return jax.random.wrap_key_data(data, impl=names[str(like.dtype)])
  if str(x.dtype) != dtype and dtype == str(like.dtype):
    x = x.view(like.dtype)
  return jnp.asarray(x)
