"""The workloads in learn2learn, with its MAML wrapper and ConvNet4."""

import importlib
import pathlib
import sys
import types

import torch
import torch.nn.functional as F

from benchmarks.with_torch import device, episode_tensors, synchronize
from benchmarks.workload import Workload

# Empty stand-ins replace these packages: their __init__.py would import gym,
# torchvision, Lightning and compiled extensions, which are not needed here.
PACKAGES = (
  'learn2learn',
  'learn2learn.algorithms',
  'learn2learn.vision',
  'learn2learn.vision.models',
)


def import_learn2learn(checkout: str):
  """Imports the modules of MAML and ConvNet4 without the rest of the package.

  Args:
    checkout: the source tree of learn2learn.

  Raises:
    OSError: `checkout` does not contain learn2learn.
  """
  root = pathlib.Path(checkout)
  if not (root / 'learn2learn' / 'algorithms' / 'maml.py').is_file():
    raise FileNotFoundError(
      f'{checkout} does not contain learn2learn/algorithms/maml.py'
    )
  for name in PACKAGES:
    package = types.ModuleType(name)
    package.__path__ = [str(root.joinpath(*name.split('.')))]
    sys.modules[name] = package
  return (
    importlib.import_module('learn2learn.algorithms.maml'),
    importlib.import_module('learn2learn.vision.models.cnn4'),
  )


def make_iteration(work: Workload, checkout: str):
  """Returns a function that runs one iteration and waits for its result.

  Args:
    work: the workload.
    checkout: the source tree of learn2learn.
  """
  maml, cnn4 = import_learn2learn(checkout)
  model = maml.MAML(
    cnn4.CNN4(work.ways, hidden_size=32).to(device()),
    lr=0.01,
    first_order=work.first_order or work.evaluation,
  )
  support, query = episode_tensors(work)
  optimizer = torch.optim.Adam(model.parameters(), 1e-3)

  def adapt(images, labels):
    learner = model.clone()
    for _ in range(work.num_steps):
      learner.adapt(F.cross_entropy(learner(images), labels))
    return learner

  def run():
    tasks = zip(*support, *query, strict=True)
    if work.evaluation:
      for x_shot, y_shot, x_query, _ in tasks:
        learner = adapt(x_shot, y_shot)
        with torch.no_grad():
          learner(x_query)
    else:
      optimizer.zero_grad()
      for x_shot, y_shot, x_query, y_query in tasks:
        loss = F.cross_entropy(adapt(x_shot, y_shot)(x_query), y_query)
        (loss / work.tasks).backward()
      optimizer.step()
    synchronize()

  return run
