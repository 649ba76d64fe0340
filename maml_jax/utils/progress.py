"""Progress bars."""

from collections.abc import Iterable

from tqdm import tqdm

from maml_jax.utils import console

__all__ = ['progress_bar', 'track']


def progress_bar(
  total: int, unit: str, description: str, *, start: int = 0
) -> tqdm:
  """Returns a progress bar that is shown only on a terminal.

  Args:
    total: number of units of work.
    unit: their name, such as 'task'.
    description: what is being done.
    start: units already completed.
  """
  return tqdm(
    desc=description,
    total=total,
    initial=start,
    unit=unit,
    disable=console.is_quiet() or None,  # None: shown only on a terminal
    dynamic_ncols=True,
    smoothing=0,  # estimate the remaining time from the mean rate
    leave=False,
  )


def track(items: Iterable, unit: str, description: str) -> Iterable:
  """Iterates over `items` with a progress bar, shown only on a terminal."""
  disable = console.is_quiet() or None
  return tqdm(items, description, unit=f' {unit}', disable=disable, leave=False)
