"""The devices that JAX uses."""

import jax

from maml_jax.utils.errors import UserError, printable

__all__ = ['require_devices']

JAX_HINT = ' (set JAX_PLATFORMS='


def require_devices() -> None:
  """Initializes JAX.

  Raises:
    UserError: there is no device of the platforms in JAX_PLATFORMS.
  """
  try:
    jax.devices()
  except Exception as error:  # also AssertionError, without a message
    reason = str(error).partition('\n')[0].partition(JAX_HINT)[0]
    reason = f' ({printable(reason)})' if reason else ''
    platforms = jax.config.values['jax_platforms']
    if not platforms:
      raise UserError(f'JAX finds no device{reason}') from error
    raise UserError(
      f'JAX_PLATFORMS={printable(platforms)}: JAX finds no such device{reason}'
      '; unset the variable to use any device, or install JAX for this platform'
    ) from error
