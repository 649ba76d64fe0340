"""The chips that programs are compiled for."""

from typing import NamedTuple

__all__ = ['CHIPS', 'Chip']


class Chip(NamedTuple):
  """The speed of a chip as specified by its manufacturer.

  Attributes:
    peak_flops: operations per second, by `config.precision`.
    memory_bandwidth: bytes per second.
    link_bandwidth: to other chips, all links together, bytes per second.
    clock: cycles per second; None if the compiler estimates no cycles.
  """

  peak_flops: dict[str, float]
  memory_bandwidth: float
  link_bandwidth: float
  clock: float | None = None


def _tpu(
  bfloat16: float, memory_bandwidth: float, link_gbit: float, clock: float
) -> Chip:
  # JAX computes float32 products in six bfloat16 passes, tf32 in three.
  peak = {'bfloat16': bfloat16, 'tf32': bfloat16 / 3, 'float32': bfloat16 / 6}
  return Chip(peak, memory_bandwidth, link_gbit * 1e9 / 8, clock)


CHIPS = {
  'v5e': _tpu(197e12, 819e9, 1600, 1.5e9),
  'v5p': _tpu(459e12, 2765e9, 4800, 1.75e9),
  'v6e': _tpu(918e12, 1640e9, 3584, 1.75e9),
  'h100': Chip(
    {'bfloat16': 989e12, 'tf32': 495e12, 'float32': 67e12}, 3352e9, 900e9
  ),
}
