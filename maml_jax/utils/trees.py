"""Pytrees of which some leaves have derivatives and others do not."""

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ['combine', 'is_inexact', 'partition']


def is_inexact(tree: Any) -> Any:
  """Returns a mask of the float leaves, unlike integers and random keys."""
  return jax.tree.map(lambda x: jnp.issubdtype(x.dtype, jnp.inexact), tree)


def partition(mask: Any, tree: Any) -> tuple[Any, Any]:
  """Splits a tree by `mask` into two, with None in place of missing leaves."""
  return (
    jax.tree.map(lambda selected, x: x if selected else None, mask, tree),
    jax.tree.map(lambda selected, x: None if selected else x, mask, tree),
  )


def combine(first: Any, second: Any) -> Any:
  """Inverts `partition`."""
  return jax.tree.map(
    lambda x, y: y if x is None else x,
    first,
    second,
    is_leaf=lambda x: x is None,
  )
