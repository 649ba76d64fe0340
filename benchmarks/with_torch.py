"""What the peers written in PyTorch have in common."""

import torch

from benchmarks.workload import Workload, arrays


def device() -> str:
  """The GPU if PyTorch sees one."""
  return 'cuda' if torch.cuda.is_available() else 'cpu'


def wait() -> None:
  """Waits for the end of what runs on the device."""
  if torch.cuda.is_available():
    torch.cuda.synchronize()


def set_precision(precision: str) -> None:
  """Of convolutions and matrix products: 'float32' or 'tf32'."""
  allowed = precision == 'tf32'
  torch.backends.cuda.matmul.allow_tf32 = allowed
  torch.backends.cudnn.allow_tf32 = allowed


def about() -> dict:
  """What the peers run on."""
  name = torch.cuda.get_device_name() if device() == 'cuda' else 'cpu'
  return {'torch': torch.__version__, 'torch_device': name}


def tensors(work: Workload):
  """The arrays of a workload, channel first, on the device."""
  return [
    (
      torch.tensor(image.transpose(0, 1, 4, 2, 3).copy(), device=device()),
      torch.tensor(label, device=device()),
    )
    for image, label in arrays(work)
  ]
