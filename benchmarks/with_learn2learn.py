"""A timed iteration of learn2learn: its MAML wrapper on its ConvNet4, eager."""

import importlib
import pathlib
import sys
import types

import torch
import torch.nn.functional as F

from benchmarks.with_torch import device, tensors, wait
from benchmarks.workload import Workload

# Packages whose own __init__ would import gym, torchvision, Lightning and
# compiled extensions, none of which the two modules needed here use.
PACKAGES = (
  'learn2learn',
  'learn2learn.algorithms',
  'learn2learn.vision',
  'learn2learn.vision.models',
)


def load(checkout: str):
  """Imports the modules of MAML and of ConvNet4, and no more than they need.

  Raises:
    OSError: there is no learn2learn in `checkout`.
  """
  root = pathlib.Path(checkout)
  if not (root / 'learn2learn' / 'algorithms' / 'maml.py').is_file():
    raise FileNotFoundError(f'no learn2learn/algorithms/maml.py in {checkout}')
  for name in PACKAGES:
    package = types.ModuleType(name)
    package.__path__ = [str(root.joinpath(*name.split('.')))]
    sys.modules[name] = package
  return (
    importlib.import_module('learn2learn.algorithms.maml'),
    importlib.import_module('learn2learn.vision.models.cnn4'),
  )


def iteration(work: Workload, checkout: str):
  """A function that runs one iteration and waits for its end."""
  maml, cnn4 = load(checkout)
  model = maml.MAML(
    cnn4.CNN4(work.ways, hidden_size=32).to(device()),
    lr=0.01,
    first_order=work.first_order or work.evaluation,
  )
  support, query = tensors(work)
  optimizer = torch.optim.Adam(model.parameters(), 1e-3)

  def adapted(image, label):
    learner = model.clone()
    for _ in range(work.num_steps):
      learner.adapt(F.cross_entropy(learner(image), label))
    return learner

  def run():
    tasks = zip(*support, *query, strict=True)
    if work.evaluation:
      for x_shot, y_shot, x_query, _ in tasks:
        learner = adapted(x_shot, y_shot)
        with torch.no_grad():
          learner(x_query)
    else:
      optimizer.zero_grad()
      for x_shot, y_shot, x_query, y_query in tasks:
        loss = F.cross_entropy(adapted(x_shot, y_shot)(x_query), y_query)
        (loss / work.tasks).backward()
      optimizer.step()
    wait()

  return run
