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

  Attributes:
    image: [..., N, H, W, C] float32; any other pytree of inputs may stand in
      this place.
    label: [..., N] int32, 0..W-1; or whatever the loss takes.
  """

  image: PyTree
  label: PyTree


class Episode(NamedTuple):
  """One few-shot task.

  Attributes:
    support: what is adapted to.
    query: what the adapted model is judged on.
  """

  support: Batch
  query: Batch


class Dataset(NamedTuple):
  """One split of an image data set, addressed by class.

  Attributes:
    image: [M, H, W, C] uint8, 0..255.
    index: [classes, max] int32; row c lists the positions in `image` of the
      images of class c. Entries at and beyond `size[c]` are padding.
    size: [classes] int32.
  """

  image: Array
  index: Array
  size: Array


class MetaState(NamedTuple):
  """Everything meta-training carries from one step to the next.

  There is no random key in it: step i draws from fold_in(key(seed), i).

  Attributes:
    step: [] int32, meta-iterations done.
    params: the meta-parameters, such as {'encoder': ..., 'classifier': ...}.
    stats: the statistics that every task starts from.
    opt_state: of the outer optimiser.
  """

  step: Array
  params: PyTree
  stats: PyTree
  opt_state: PyTree


class Model(NamedTuple):
  """A network as two pure functions.

  Attributes:
    init: `init(key) -> (params, stats)`.
    apply: `apply(params, stats, image, *, train) -> (logits, stats)`, with
      `train` true for the support pass and false for the query pass.
  """

  init: Callable[..., tuple[PyTree, PyTree]]
  apply: Callable[..., tuple[PyTree, PyTree]]
