"""The containers that pass between layers.

Shape legend, used in all of maml_jax: T tasks per meta-batch, W ways, S shots,
Q queries per class, K inner steps, N images of one set (W*S or W*Q).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any

# Statistics that a task keeps to itself live under these keys of the stats
# dict; everything beside them carries over from task to task. Those under
# SUPPORT are taken once more from the support set after the last inner step.
EPISODE, SUPPORT = 'episode', 'support'


class Batch(NamedTuple):
  """Labelled images: one support set or one query set.

  Any other pytree of inputs may stand in the place of `image`.
  """

  image: PyTree  # [..., N, H, W, C] float32
  label: PyTree  # [..., N] int32, 0..W-1


class Episode(NamedTuple):
  """One few-shot task: adapt on `support`, be judged on `query`."""

  support: Batch
  query: Batch


class Dataset(NamedTuple):
  """One split of an image data set, addressed by class.

  Row c of `index` lists the positions in `image` of the images of class c;
  entries at and beyond `size[c]` are padding.
  """

  image: Array  # [M, H, W, C] uint8, 0..255
  index: Array  # [classes, max] int32
  size: Array  # [classes] int32


class MetaState(NamedTuple):
  """Everything meta-training carries from one step to the next.

  There is no random key in it: step i draws from fold_in(key(seed), i).
  """

  step: Array  # [] int32, meta-iterations done
  params: PyTree  # {'encoder': ..., 'classifier': ...}
  stats: PyTree
  opt_state: PyTree


class Model(NamedTuple):
  """A network as two pure functions.

  `init(key) -> (params, stats)`;
  `apply(params, stats, image, *, train) -> (logits, stats)` with `train` true
  for the support pass and false for the query pass.
  """

  init: Callable[..., tuple[PyTree, PyTree]]
  apply: Callable[..., tuple[PyTree, PyTree]]
