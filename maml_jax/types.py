"""Data structures shared by all modules.

Shape legend, used in all of maml_jax: T tasks per meta-batch, W ways, S shots,
Q queries per class, K inner steps, N images of one set (W*S or W*Q). In image
shapes [..., H, W, C], W is the width.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

__all__ = [
  'EPISODE',
  'INNER',
  'SUPPORT',
  'Array',
  'Batch',
  'Dataset',
  'Episode',
  'MetaState',
  'Model',
  'PyTree',
]

Array = jax.Array
PyTree = Any

# Statistics that belong to a single task are stored under these keys of the
# stats dict; all other statistics carry over from task to task. Those under
# SUPPORT are recomputed from the support set after the last inner step.
EPISODE, SUPPORT = 'episode', 'support'
# The key of the quantities that `inner_loop.learned` adds to params.
INNER = 'inner'


class Batch(NamedTuple):
  """Inputs and targets: one support set or one query set.

  Attributes:
    inputs: [..., N, H, W, C] float32 images, or any other pytree of inputs.
    targets: [..., N] int32 class labels, 0..W-1, or whatever the loss takes.
  """

  inputs: PyTree
  targets: PyTree


class Episode(NamedTuple):
  """One few-shot task.

  Attributes:
    support: the examples that the model adapts to.
    query: the examples on which the adapted model is evaluated.
  """

  support: Batch
  query: Batch


class Dataset(NamedTuple):
  """One split of an image data set, indexed by class.

  Attributes:
    images: [M, H, W, C] uint8, 0..255.
    index: [classes, max] int32; row c lists the positions in `images` of the
      images of class c. Entries at and beyond `size[c]` are padding.
    size: [classes] int32, number of images per class.
  """

  images: np.ndarray | Array
  index: np.ndarray | Array
  size: np.ndarray | Array


class MetaState(NamedTuple):
  """Everything that meta-training carries from one step to the next.

  It holds no random key: step i draws its tasks from `fold_in(key, i)`, with
  the `key` of `train_step.make_train_step`.

  Attributes:
    step: [] int32, number of meta-iterations completed.
    params: the meta-parameters, such as {'encoder': ..., 'classifier': ...}.
    stats: the statistics that every task starts from.
    opt_state: the state of the outer optimizer.
  """

  step: Array
  params: PyTree
  stats: PyTree
  opt_state: PyTree


class Model(NamedTuple):
  """A network as two pure functions.

  Attributes:
    init: `init(key) -> (params, stats)`.
    apply: `apply(params, stats, inputs, *, train) -> (outputs, stats)`, with
      `train=True` for the support pass and `train=False` for the query pass.
    features: the same up to the input of the head, [N, D]; needed by the
      prototype head only.
  """

  init: Callable[..., tuple[PyTree, PyTree]]
  apply: Callable[..., tuple[PyTree, PyTree]]
  features: Callable[..., tuple[PyTree, PyTree]] | None = None
