"""The workloads that are timed: meta-iterations on mini-ImageNet shapes.

Unless stated otherwise: ConvNet4 of width 32, 84 x 84 pixels, 5 ways, 4 tasks,
15 queries per class, batch norm meta-learned but not adapted, and an outer
update by Adam. `evaluation` only adapts and predicts; `inductive` has the
settings of configs/mini_5w1s_inductive.py.

This module imports neither JAX nor PyTorch.
"""

from typing import NamedTuple

import numpy as np


class Workload(NamedTuple):
  """The settings of one meta-iteration.

  Attributes:
    shots: S, support images per class.
    num_steps: K, inner steps.
    first_order: use the first-order approximation of the outer gradient.
    evaluation: adapt and predict only; no outer gradient.
    inductive: use the settings of configs/mini_5w1s_inductive.py.
    remat: see `InnerConfig`.
    mixed_mode: see `InnerConfig`.
    tasks: T, tasks per meta-batch.
    ways: W, classes per task.
    queries: Q, query images per class.
    side: height and width of the images in pixels.
    encoder: an encoder of `maml_jax.models`, or 'tiny'.
  """

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
  encoder: str = 'convnet4'


# Also run by the other libraries.
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
  """Shrinks a workload for tests, with a network of one convolution."""
  return work._replace(
    tasks=min(work.tasks, 2), ways=2, queries=2, side=8, encoder='tiny'
  )


def random_episodes(work: Workload):
  """Returns random support and query sets, as NumPy arrays.

  Returns:
    (images [T, N, H, W, 3] float32 in 0..1, labels [T, N] int) of the support
    sets, and the same of the query sets; N is W*S or W*Q.
  """
  r = np.random.RandomState(0)

  def make_batch(per_class):
    shape = (work.tasks, work.ways * per_class, work.side, work.side, 3)
    labels = np.repeat(np.arange(work.ways), per_class)
    return r.rand(*shape).astype(np.float32), np.tile(labels, (work.tasks, 1))

  return make_batch(work.shots), make_batch(work.queries)


# Pre-training, as preset mini_pretrain: a batch of PARTS x 32 images.
PARTS, BATCH, CLASSES = 4, 128, 64


def random_images():
  """Returns a batch for pre-training, as NumPy arrays.

  Returns:
    Images [BATCH, 84, 84, 3] float32 in 0..1, labels [BATCH] int.
  """
  r = np.random.RandomState(0)
  images = r.rand(BATCH, 84, 84, 3).astype(np.float32)
  return images, r.randint(0, CLASSES, BATCH)
