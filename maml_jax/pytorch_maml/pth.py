"""Reads and writes PyTorch-MAML's .pth files.

Only tensors and plain values are loaded; files cannot run code. No other module
uses PyTorch.
"""

import importlib
import os
import pathlib
import re
from typing import Any

import numpy as np

from maml_jax.utils.errors import UserError

__all__ = ['MIN_TORCH_VERSION', 'load', 'save']

# In older versions, `weights_only=True` can be bypassed (CVE-2025-32434).
MIN_TORCH_VERSION = (2, 6)


def load(path: str | os.PathLike) -> dict:
  """Reads a .pth file.

  Returns:
    The content, with tensors converted to NumPy arrays.

  Raises:
    UserError: the file does not exist, is damaged, or contains more than
      tensors and plain values; or PyTorch is not installed.
  """
  if not pathlib.Path(path).is_file():
    raise UserError(f'no such file: {path}')
  torch = _import_torch()
  try:
    content = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:  # damaged files can raise any exception
    raise UserError(_load_error_message(path, error)) from error
  if not isinstance(content, dict):
    raise UserError(f'{path} is not a checkpoint: it does not contain a dict')
  return _to_numpy(torch, content)


def save(path: str | os.PathLike, content: dict) -> None:
  """Writes a .pth file, with NumPy arrays in `content` converted to tensors.

  Raises:
    UserError: the file cannot be written, or PyTorch is not installed.
  """
  torch = _import_torch()
  try:
    torch.save(_to_torch(torch, content), path)
  except (OSError, RuntimeError) as error:
    line = str(error).partition('\n')[0]
    raise UserError(f'cannot write {path}: {line}') from error


def _import_torch():
  """Imports PyTorch, which is optional and takes seconds to import."""
  try:
    torch = importlib.import_module('torch')
  except ImportError:
    raise UserError(
      "PyTorch is not installed: run pip install 'torch>=2.6' (CPU is enough)"
    ) from None
  version = tuple(map(int, re.findall(r'\d+', torch.__version__)[:2]))
  if version < MIN_TORCH_VERSION:
    raise UserError(
      f'PyTorch {torch.__version__} may run code hidden in a file; '
      "run pip install 'torch>=2.6'"
    )
  return torch


def _load_error_message(path: str | os.PathLike, error: Exception) -> str:
  message = str(error)
  if code := re.search(r'GLOBAL (\S+)', message):
    return (
      f'{path} contains {code[1]} in addition to tensors and plain values; '
      'loading it could run code'
    )
  first = message.partition('\n')[0][:100] or type(error).__name__
  return f'{path} is damaged or not a PyTorch file: {first}'


def _to_numpy(torch, tree: Any) -> Any:
  if isinstance(tree, dict):
    return {key: _to_numpy(torch, value) for key, value in tree.items()}
  if isinstance(tree, list | tuple):
    return [_to_numpy(torch, value) for value in tree]
  if isinstance(tree, torch.Tensor):
    tensor = tree.detach()
    if tensor.dtype == torch.bfloat16:  # NumPy lacks this dtype
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
