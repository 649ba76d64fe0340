"""Counts the floating-point operations of a traced program.

Only convolutions and matrix products are counted: two operations for each
multiply-add of the direct algorithm, including the zeros of padding. All other
operations (batch norm, pooling, updates) are limited by memory bandwidth.
"""

import math
from collections.abc import Callable

from jax.interpreters import partial_eval


def count_flops(closed_jaxpr, while_trips: int | None = None) -> int:
  """Returns the number of operations of a program.

  Operations that no output depends on are not counted. The body of a loop
  counts once per iteration, a `shard_map` once per device, and a conditional as
  its most expensive branch.

  Args:
    closed_jaxpr: from `jax.make_jaxpr(fn)(*args)`.
    while_trips: iterations of each `while` loop, whose length is unknown.

  Raises:
    ValueError: `while_trips` is missing, and a `while` loop contains countable
      operations.
  """
  jaxpr = closed_jaxpr.jaxpr
  used = [True] * len(jaxpr.outvars)
  return _count_jaxpr(partial_eval.dce_jaxpr(jaxpr, used)[0], while_trips)


def _count_jaxpr(jaxpr, while_trips) -> int:
  return sum(_count_equation(eqn, while_trips) for eqn in jaxpr.eqns)


def _count_equation(equation, while_trips) -> int:
  name = equation.primitive.name
  if name in _COUNTERS:
    return _COUNTERS[name](equation)
  counts = [
    _count_jaxpr(jaxpr, while_trips) for jaxpr in _sub_jaxprs(equation.params)
  ]
  if name == 'while' and any(counts):
    if while_trips is None:
      raise ValueError('cannot count a while loop: its length is unknown')
    return while_trips * sum(counts)
  if name == 'cond':
    return max(counts)
  return _repetitions(equation) * sum(counts)


def _repetitions(equation) -> int:
  """Returns how often an equation runs the jaxprs that it contains."""
  name, params = equation.primitive.name, equation.params
  if name == 'scan':
    return params['length']
  return params['mesh'].size if name == 'shard_map' else 1


def _sub_jaxprs(params):
  """Yields the jaxprs among the parameters of an equation."""
  for value in params.values():
    for item in value if isinstance(value, list | tuple) else [value]:
      jaxpr = getattr(item, 'jaxpr', item)
      if hasattr(jaxpr, 'eqns'):
        yield jaxpr


def _shapes(equation):
  """Returns the shapes of the first two inputs and of the first output."""
  first, second, *_ = (v.aval.shape for v in equation.invars)
  return first, second, equation.outvars[0].aval.shape


def _dot_general(equation) -> int:
  first, _, out = _shapes(equation)
  (contracted, _), _ = equation.params['dimension_numbers']
  return 2 * math.prod(out) * math.prod(first[i] for i in contracted)


def _lax_conv(equation) -> int:
  _, kernel, out = _shapes(equation)
  _, inputs, *spatial = equation.params['dimension_numbers'].rhs_spec
  return 2 * math.prod(out) * math.prod(kernel[i] for i in (inputs, *spatial))


def _conv(equation) -> int:
  """[(T,) N, H, W, C] * [(T,) k, k, C, O] -> [(T,) N, H', W', O]."""
  _, kernel, out = _shapes(equation)
  return 2 * math.prod(out) * math.prod(kernel[-4:-1])


def _kernel_grad(equation) -> int:
  """[(T,) N, H, W, C], [(T,) N, H', W', O] -> [(T,) k, k, C, O]."""
  _, g, out = _shapes(equation)
  return 2 * math.prod(out) * math.prod(g[-4:-1])


_COUNTERS: dict[str, Callable[..., int]] = {
  'dot_general': _dot_general,
  'conv_general_dilated': _lax_conv,
  'conv': _conv,
  'conv_kernel_grad': _kernel_grad,
}
