"""Max pooling with fast and correct higher-order derivatives.

Max pooling finds the winner of each window once and stores its position.
Picking the winners and placing gradients at their positions are linear
operations and transposes of each other. The gradient of `max` over a reshaped
window finds the maximum a second time, by equality, which fails silently if
the compiler recomputes the input with different rounding.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.interpreters import ad, batching

from maml_jax.ops.primitives import (
  bind,
  bind_merged,
  make_primitive,
  move_axes_to_front,
)
from maml_jax.types import Array

__all__ = ['max_pool', 'window_corners']


def max_pool(x: Array, scale: Array | None = None) -> Array:
  """Returns the pixel of each 2 x 2 window at which `scale * x` is largest.

  `scale * max_pool(x, scale) + bias` is the maximum of `scale * x + bias`, for
  a quarter of the arithmetic. Ties are resolved in favor of the first pixel.

  Args:
    x: [N, H, W, C]; an odd last row or column is dropped.
    scale: [1 or N, 1, 1, C]; only its sign matters; default 1.

  Returns:
    [N, H // 2, W // 2, C], values of `x`.
  """
  compared = lax.stop_gradient(x)
  if scale is not None:
    sign = jnp.sign(lax.stop_gradient(scale))
    compared = compared * sign.astype(x.dtype)
  return bind(_pick_p, x, bind(_winner_p, compared), size=x.shape[1:3])


# Pooling. A winner is 0 (top left), 1 (top right), 2 (bottom left) or 3 (bottom
# right). pick_p and place_p are linear in their first operand.
#
#   winner_p  x [N, H, W, C] -> [N, H//2, W//2, C] int8
#   pick_p    x [N, H, W, C], winner -> [N, H//2, W//2, C]
#   place_p   g [N, H//2, W//2, C], winner -> [N, H, W, C], zero elsewhere
#
# CPUs and GPUs reshape images to windows. On TPUs, where the last two axes are
# stored in tiles, strided slices and interior padding are much faster.


def window_corners(x: Array) -> list[Array]:
  """Returns the pixels of each 2 x 2 window of `x` [N, H, W, C].

  Returns:
    Four arrays [N, H // 2, W // 2, C]: top left, top right, bottom left and
    bottom right. An odd last row or column is dropped.
  """
  n, h, w, c = x.shape
  x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c)
  return [x[:, :, i, :, j] for i in (0, 1) for j in (0, 1)]


def _strided_corners(x):
  """Returns `window_corners(x)`, by strided slices."""
  n, h, w, c = x.shape
  return [
    lax.slice(x, (0, i, j, 0), (n, h // 2 * 2, w // 2 * 2, c), (1, 2, 2, 1))
    for i in (0, 1)
    for j in (0, 1)
  ]


def _find_winner(x, *, corners=window_corners):
  """Returns the position of the maximum of each window: int8, 0..3."""
  a, b, c, d = corners(x)
  top_column, bottom_column = b > a, d > c
  row = jnp.where(bottom_column, d, c) > jnp.where(top_column, b, a)
  column = jnp.where(row, bottom_column, top_column)
  return 2 * row.astype(jnp.int8) + column.astype(jnp.int8)


def _pick(x, winner, *, size, corners=window_corners):
  """Returns the pixels at the positions `winner`; `size` is unused."""
  del size
  a, b, c, d = corners(x)
  bottom = jnp.where(winner == 2, c, d)
  return jnp.where(winner < 2, jnp.where(winner == 0, a, b), bottom)


def _place(g, winner, *, size):
  """Returns an image of height and width `size` with `g` at the winners."""
  n, h, w, c = g.shape
  position = jnp.arange(4, dtype=winner.dtype).reshape(1, 1, 2, 1, 2, 1)
  is_winner = winner[:, :, None, :, None] == position
  x = jnp.where(is_winner, g[:, :, None, :, None], jnp.zeros((), g.dtype))
  x = x.reshape(n, 2 * h, 2 * w, c)
  rows, columns = size[0] - 2 * h, size[1] - 2 * w
  return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)))


def _place_by_padding(g, winner, *, size):
  """Returns `_place(g, winner, size=size)`, by interior padding."""
  zero = jnp.zeros((), g.dtype)

  def place_corner(i, j):
    padding = [
      (offset, n - offset - (2 * m - 1), 1)
      for offset, n, m in zip((i, j), size, g.shape[1:3], strict=True)
    ]
    part = jnp.where(winner == 2 * i + j, g, zero)
    return lax.pad(part, zero, [(0, 0, 0), *padding, (0, 0, 0)])

  top = place_corner(0, 0) + place_corner(0, 1)
  return top + (place_corner(1, 0) + place_corner(1, 1))


def _make_pooling_primitive(name, impl, tpu):
  """Returns a primitive that is linear in its first operand, if it has two."""

  def jvp(primals, tangents, **kw):
    out = bind(prim, *primals, **kw)
    if len(primals) == 1 or type(tangents[0]) is ad.Zero:
      zero: Any = ad.Zero  # whose type lacks the method
      return out, zero.from_primal_value(out)
    return out, bind(prim, tangents[0], primals[1], **kw)

  def batch(operands, axes, **kw):
    return bind_merged(prim, *move_axes_to_front(operands, axes), **kw)

  prim = make_primitive(name, impl, tpu=tpu)
  ad.primitive_jvps[prim] = jvp
  batching.primitive_batchers[prim] = batch
  return prim


def _set_transpose(prim, other):
  """Registers `other` as the transpose of `prim` in its first operand."""

  def rule(ct, first, winner, **kw):
    if type(ct) is ad.Zero:
      return ad.Zero(first.aval), None
    return bind(other, ct, winner, **kw), None

  ad.primitive_transposes[prim] = rule


_winner_p = _make_pooling_primitive(
  'max_pool_winner',
  _find_winner,
  tpu=partial(_find_winner, corners=_strided_corners),
)
_pick_p = _make_pooling_primitive(
  'max_pool_pick', _pick, tpu=partial(_pick, corners=_strided_corners)
)
_place_p = _make_pooling_primitive(
  'max_pool_place', _place, tpu=_place_by_padding
)
_set_transpose(_pick_p, _place_p)
_set_transpose(_place_p, _pick_p)
