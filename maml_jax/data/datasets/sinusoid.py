"""Sinusoid regression, the first experiment of the MAML paper (section 5.1).

A task is one sine wave; its support and query sets are points on the wave.
"""

import jax
import jax.numpy as jnp

from maml_jax.types import Array, Batch, Episode

__all__ = ['AMPLITUDE', 'PHASE', 'RANGE', 'draw_wave', 'sample_episode', 'sine']

AMPLITUDE, PHASE, RANGE = (0.1, 5.0), (0.0, jnp.pi), (-5.0, 5.0)


def draw_wave(key: Array) -> tuple[Array, Array]:
  """Draws an amplitude [] and a phase [], float32, uniformly."""
  amplitude_key, phase_key = jax.random.split(key)
  return (
    jax.random.uniform(amplitude_key, (), jnp.float32, *AMPLITUDE),
    jax.random.uniform(phase_key, (), jnp.float32, *PHASE),
  )


def sine(wave: tuple[Array, Array], x: Array) -> Array:
  """Returns amplitude * sin(x - phase), with the shape of `x`."""
  amplitude, phase = wave
  return amplitude * jnp.sin(x - phase)


def sample_episode(key: Array, *, shots: int, queries: int) -> Episode:
  """Draws one task, a pure function of `key`.

  Args:
    key: a typed random key.
    shots: S, points in the support set.
    queries: Q, points in the query set.

  Returns:
    An `Episode` with inputs x [S or Q, 1], uniform in -5..5, and targets
    y [S or Q, 1], float32.
  """
  wave_key, *x_keys = jax.random.split(key, 3)
  wave = draw_wave(wave_key)

  def make_batch(key, size):
    x = jax.random.uniform(key, (size, 1), jnp.float32, *RANGE)
    return Batch(x, sine(wave, x))

  return Episode(*map(make_batch, x_keys, (shots, queries)))
