"""Counts the floating-point operations of a traced program.

Convolutions and matrix products are counted, a multiplication and an addition
as two, as if every one were done directly; the zeros of padding count. What
else there is (batch norm, pooling, updates) is bound by memory and left out.
"""

import math
from collections.abc import Callable

from jax.interpreters import partial_eval


def count(closed_jaxpr) -> int:
  """The operations of a program, e.g. of `jax.make_jaxpr(fn)(*args)`.

  What does not lead to an output is not counted. A loop counts as often as it
  runs, all devices of a `shard_map` count, and of several branches the dearest.

  Raises:
    ValueError: a `while` loop with countable work, whose length is unknown.
  """
  jaxpr = closed_jaxpr.jaxpr
  used = [True] * len(jaxpr.outvars)
  return _of_jaxpr(partial_eval.dce_jaxpr(jaxpr, used)[0])


def _of_jaxpr(jaxpr) -> int:
  return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation) -> int:
  name = equation.primitive.name
  if name in _COUNTERS:
    return _COUNTERS[name](equation)
  inside = [_of_jaxpr(jaxpr) for jaxpr in _jaxprs(equation.params)]
  if name == 'while' and any(inside):
    raise ValueError('the length of a while loop is unknown')
  if name == 'cond':
    return max(inside)
  return _repetitions(equation) * sum(inside)


def _repetitions(equation) -> int:
  name, params = equation.primitive.name, equation.params
  if name == 'scan':
    return params['length']
  return params['mesh'].size if name == 'shard_map' else 1


def _jaxprs(params):
  for value in params.values():
    for item in value if isinstance(value, list | tuple) else [value]:
      jaxpr = getattr(item, 'jaxpr', item)
      if hasattr(jaxpr, 'eqns'):
        yield jaxpr


def _shapes(equation):
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
