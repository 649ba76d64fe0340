"""Helpers for the libraries that use PyTorch."""

import torch

from benchmarks.workload import Workload, random_episodes


def device() -> str:
  """Returns 'cuda' if PyTorch sees a GPU, else 'cpu'."""
  return 'cuda' if torch.cuda.is_available() else 'cpu'


def synchronize() -> None:
  """Waits until the device has finished all work."""
  if torch.cuda.is_available():
    torch.cuda.synchronize()


def set_precision(precision: str) -> None:
  """Sets the precision of convolutions and matrix products.

  Args:
    precision: 'float32' or 'tf32'.
  """
  allowed = precision == 'tf32'
  torch.backends.cuda.matmul.allow_tf32 = allowed
  torch.backends.cudnn.allow_tf32 = allowed


def describe_device() -> dict:
  """Returns the version of PyTorch and the name of the device."""
  name = torch.cuda.get_device_name() if device() == 'cuda' else 'cpu'
  return {'torch': torch.__version__, 'torch_device': name}


def episode_tensors(work: Workload):
  """Returns `random_episodes` as tensors, images with channels first."""
  return [
    (
      torch.tensor(images.transpose(0, 1, 4, 2, 3).copy(), device=device()),
      torch.tensor(labels, device=device()),
    )
    for images, labels in random_episodes(work)
  ]
