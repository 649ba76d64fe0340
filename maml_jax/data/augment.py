"""Random changes to images, under jit, each image on its own.

Every entry of `AUGMENTATIONS` is a function of (key, image): uint8 images
[N, H, W, C], 0..255, to images of that shape and range, uint8 or float32.
"""

import jax
import jax.numpy as jnp

from maml_jax.types import Episode


def none(key, image):
  """Leaves the images as they are."""
  del key
  return image


def flip(key, image):
  """Mirrors each image left to right with probability 1/2."""
  mirrored = jax.random.bernoulli(key, shape=(image.shape[0], 1, 1, 1))
  return jnp.where(mirrored, image[:, :, ::-1], image)


AUGMENTATIONS = {'none': none, 'flip': flip}


def augmented(transform, *, support='none', query='none'):
  """A transform that augments the images of a task before `transform`.

  Args:
    transform: `transform(key, episode) -> episode`, see `data.episodes`.
    support: a key of `AUGMENTATIONS`, for the support set.
    query: likewise for the query set.

  Returns:
    Another such transform.
  """

  def change(name, key, batch):
    return batch._replace(image=AUGMENTATIONS[name](key, batch.image))

  def augment_then_transform(key, episode):
    support_key, query_key, rest = jax.random.split(key, 3)
    episode = Episode(
        change(support, support_key, episode.support),
        change(query, query_key, episode.query),
    )
    return transform(rest, episode)

  return augment_then_transform
