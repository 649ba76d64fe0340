"""Helpers for the libraries that use PyTorch."""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.workload import (
  CLASSES,
  Workload,
  random_episodes,
  random_images,
)


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


class CosineClassifier(nn.Module):
  """ConvNet4 with 64 filters and a cosine head, for 84 x 84 pixels."""

  def __init__(self):
    super().__init__()
    layers = []
    for channels in (3, 64, 64, 64):
      layers += [
        nn.Conv2d(channels, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
      ]
    self.encoder = nn.Sequential(*layers, nn.Flatten())
    self.head = nn.Parameter(torch.randn(CLASSES, 64 * 25))

  def forward(self, images):
    features = F.normalize(self.encoder(images))
    return 10 * features @ F.normalize(self.head).T


def make_pretraining_iteration():
  """Returns a function that pre-trains on one batch."""
  images, labels = random_images()
  images = torch.tensor(images.transpose(0, 3, 1, 2).copy(), device=device())
  labels = torch.tensor(labels, device=device())
  network = CosineClassifier().to(device())
  optimizer = torch.optim.SGD(
    network.parameters(), 0.05, momentum=0.9, weight_decay=5e-4
  )

  def run():
    loss = F.cross_entropy(network(images), labels, label_smoothing=0.1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    synchronize()

  return run
