"""PyTorch-MAML's checkpoint files; the only module that uses PyTorch.

Reading one reads tensors and plain values, never code.
"""

import importlib
import os
import pathlib
import re
from typing import Any

import numpy as np

from maml_jax.utils.errors import UserError

# Before it, what was meant to read weights alone could be made to run code.
MIN_TORCH_VERSION = (2, 6)


def load(path: str | os.PathLike) -> dict:
  """Reads a .pth file.

  Returns:
    What it holds, with NumPy arrays in the place of tensors.

  Raises:
    UserError: no such file, no PyTorch, a file that is damaged, or one that
      holds more than tensors and plain values.
  """
  if not pathlib.Path(path).is_file():
    raise UserError(f'no file {path}')
  torch = _torch()
  try:
    content = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:  # damaged files can raise nearly anything
    raise UserError(_reason(path, error)) from error
  if not isinstance(content, dict):
    raise UserError(f'{path} is no checkpoint: it holds no dict')
  return _to_numpy(torch, content)


def save(path: str | os.PathLike, content: dict) -> None:
  """Writes a .pth file; NumPy arrays in `content` become tensors.

  Raises:
    UserError: no PyTorch, or no place to write to.
  """
  torch = _torch()
  try:
    torch.save(_to_torch(torch, content), path)
  except (OSError, RuntimeError) as error:
    line = str(error).partition('\n')[0]
    raise UserError(f'cannot write {path}: {line}') from error


def _torch():
  try:
    torch = importlib.import_module('torch')
  except ImportError:
    raise UserError(
      "this needs PyTorch: pip install 'torch>=2.6' (a CPU version will do)"
    ) from None
  version = tuple(map(int, re.findall(r'\d+', torch.__version__)[:2]))
  if version < MIN_TORCH_VERSION:
    raise UserError(
      f'PyTorch {torch.__version__} may run code hidden in a file: '
      "pip install 'torch>=2.6'"
    )
  return torch


def _reason(path: str | os.PathLike, error: Exception) -> str:
  message = str(error)
  if code := re.search(r'GLOBAL (\S+)', message):
    return (
      f'refused: {path} holds {code[1]}, not only tensors and plain values: '
      'reading it could run code'
    )
  first = message.partition('\n')[0][:100] or type(error).__name__
  return f'{path} is damaged, or no PyTorch file: {first}'


def _to_numpy(torch, tree: Any) -> Any:
  if isinstance(tree, dict):
    return {key: _to_numpy(torch, value) for key, value in tree.items()}
  if isinstance(tree, list | tuple):
    return [_to_numpy(torch, value) for value in tree]
  if isinstance(tree, torch.Tensor):
    tensor = tree.detach()
    if tensor.dtype == torch.bfloat16:  # which NumPy does not know
      tensor = tensor.float()
    return tensor.numpy()
  return tree


def _to_torch(torch, tree: Any) -> Any:
  if isinstance(tree, dict):
    return {key: _to_torch(torch, value) for key, value in tree.items()}
  if isinstance(tree, np.ndarray):
    return torch.from_numpy(np.array(tree))
  if isinstance(tree, np.generic):
    return tree.item()
  return tree
