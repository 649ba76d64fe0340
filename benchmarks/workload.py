"""The unit of work that is timed: one meta-iteration on mini-ImageNet shapes.

ConvNet4 of width 32, 84 x 84 pixels, 5 ways, 4 tasks, 15 queries per class,
batch norm meta-learned but not adapted; outer update by Adam included.
`evaluation` adapts and predicts alone; `inductive` is the setting of
configs/mini_5w1s_inductive.py. Imports neither JAX nor PyTorch.
"""

from typing import NamedTuple

import numpy as np


class Workload(NamedTuple):
  """What one iteration does."""

  shots: int = 1
  num_steps: int = 5
  first_order: bool = False
  evaluation: bool = False
  inductive: bool = False
  remat: bool = False
  mixed_mode: bool = False
  tasks: int = 4
  ways: int = 5
  queries: int = 15
  side: int = 84
  encoder: str = 'convnet4'  # or one of maml_jax.models, or 'tiny'


# What peers are timed at too.
COMPARED = {
  '5w1s': Workload(),
  '5w5s': Workload(shots=5),
  'first_order': Workload(first_order=True),
  'evaluation': Workload(num_steps=10, evaluation=True),
}
WORKLOADS = {
  **COMPARED,
  'inductive': Workload(inductive=True),
  'resnet12': Workload(encoder='resnet12', remat=True),
}


def tiny(work: Workload) -> Workload:
  """The same at a size for tests, with a network of one convolution."""
  return work._replace(
    tasks=min(work.tasks, 2), ways=2, queries=2, side=8, encoder='tiny'
  )


def arrays(work: Workload):
  """Random support and query sets: images [T, N, H, W, 3] float32, labels."""
  r = np.random.RandomState(0)

  def batch(per_class):
    shape = (work.tasks, work.ways * per_class, work.side, work.side, 3)
    label = np.repeat(np.arange(work.ways), per_class)
    return r.rand(*shape).astype(np.float32), np.tile(label, (work.tasks, 1))

  return batch(work.shots), batch(work.queries)
