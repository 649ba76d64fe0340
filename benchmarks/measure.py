"""Timing: medians of several runs, warm-up apart, sides measured in turn."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from maml_jax.experiment.setup import PRECISIONS
from maml_jax.utils.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A sample lasts at least so long: it takes as many calls as that needs.
SECONDS_PER_SAMPLE = 0.1
LEAST_REPEATS = 2


class Settings(NamedTuple):
  """How everything is measured.

  Attributes:
    repeats: samples of every time.
    seconds: no further sample is taken of what has taken so long, once there
      are two.
    precision: of matrix products, as in the config.
    tiny: small images and networks, for tests.
  """

  repeats: int = 7
  seconds: float = 90.0
  precision: str = 'float32'
  tiny: bool = False


def in_turn(
  calls: dict[str, Callable], settings: Settings
) -> dict[str, list[float]]:
  """Seconds per call of several sides, sampled in turn.

  Args:
    calls: name -> `call() -> pytree of arrays`, which need not be ready.
    settings: how many samples.

  Returns:
    name -> samples; those at the same place in the lists were taken together.
  """
  counts = {name: _calls_per_sample(call) for name, call in calls.items()}
  times = {name: [] for name in calls}
  start = time.perf_counter()
  for i in range(settings.repeats):
    spent = time.perf_counter() - start
    if i >= LEAST_REPEATS and spent > settings.seconds:
      break
    # Who goes first changes, so that a drift of the machine favours nobody.
    for name in list(calls)[:: -1 if i % 2 else 1]:
      times[name].append(_seconds_per_call(calls[name], counts[name]))
  return times


def _calls_per_sample(call) -> int:
  """Warms up; the first call may compile."""
  _seconds_per_call(call, 1)
  return max(1, round(SECONDS_PER_SAMPLE / _seconds_per_call(call, 1)))


def _seconds_per_call(call, count) -> float:
  start = time.perf_counter()
  for _ in range(count):
    result = call()
  jax.block_until_ready(result)
  return (time.perf_counter() - start) / count


def spread(name: str, values: Sequence[float], scale: float = 1.0) -> dict:
  """{name: median, name_min, name_max} of scaled values."""
  values = [scale * value for value in values]
  return {
    name: statistics.median(values),
    f'{name}_min': min(values),
    f'{name}_max': max(values),
  }


def milliseconds(name: str, seconds: Sequence[float]) -> dict:
  """`spread` of seconds, in milliseconds."""
  return spread(name, seconds, 1e3)


def child(module: str, *args: str, precision: str, **env: str) -> dict:
  """What a module prints last, as JSON, in a process of its own.

  Args:
    module: its name.
    *args: its command line.
    precision: as in `Settings`.
    **env: further environment variables.

  Raises:
    UserError: it failed; with the last line that it wrote.
  """
  shared = {
    'JAX_DEFAULT_MATMUL_PRECISION': PRECISIONS[precision][1],
    # The accelerator's memory may be held by this process.
    'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
  }
  done = subprocess.run(
    [sys.executable, '-m', module, *args],
    cwd=ROOT,
    env=os.environ | shared | env,
    capture_output=True,
    text=True,
  )
  if done.returncode:
    last = done.stderr.strip().splitlines()[-1:] or ['no message']
    raise UserError(f'{module} {" ".join(args)}: {last[0]}')
  return json.loads(done.stdout.splitlines()[-1])
