"""Timing: medians of several samples after warm-up, interleaved."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from benchmarks.machine import ROOT
from maml_jax.experiment.setup import PRECISIONS
from maml_jax.utils.errors import UserError

# A sample takes at least this long; short calls are repeated within it.
SECONDS_PER_SAMPLE = 0.1
MIN_REPEATS = 2


class Settings(NamedTuple):
  """Settings of all measurements.

  Attributes:
    repeats: samples of each time.
    seconds: stop sampling after this long, but not before `MIN_REPEATS`.
    precision: of matrix products, as in the config.
    tiny: use small images and networks, for tests.
  """

  repeats: int = 7
  seconds: float = 90.0
  precision: str = 'float32'
  tiny: bool = False


def time_interleaved(
  calls: dict[str, Callable], settings: Settings
) -> dict[str, list[float]]:
  """Measures the seconds per call of several functions, sampled in turn.

  Args:
    calls: name -> `call() -> pytree of arrays`; the arrays need not be ready.
    settings: the number of samples.

  Returns:
    name -> samples; samples with the same index were taken one after another.
  """
  counts = {name: _calls_per_sample(call) for name, call in calls.items()}
  times = {name: [] for name in calls}
  start = time.perf_counter()
  for i in range(settings.repeats):
    elapsed = time.perf_counter() - start
    if i >= MIN_REPEATS and elapsed > settings.seconds:
      break
    # The order alternates, so that drift of the machine cancels out.
    for name in list(calls)[:: -1 if i % 2 else 1]:
      times[name].append(_seconds_per_call(calls[name], counts[name]))
  return times


def _calls_per_sample(call: Callable) -> int:
  """Returns the calls that fill a sample, after a first call to warm up."""
  _seconds_per_call(call, 1)
  return max(1, round(SECONDS_PER_SAMPLE / _seconds_per_call(call, 1)))


def _seconds_per_call(call: Callable, count: int) -> float:
  start = time.perf_counter()
  for _ in range(count):
    result = call()
  jax.block_until_ready(result)
  return (time.perf_counter() - start) / count


def median_and_range(
  name: str, values: Sequence[float], scale: float = 1.0
) -> dict[str, float]:
  """Returns {NAME: median, NAME_min, NAME_max} of scaled values."""
  values = [scale * value for value in values]
  return {
    name: statistics.median(values),
    f'{name}_min': min(values),
    f'{name}_max': max(values),
  }


def milliseconds(name: str, seconds: Sequence[float]) -> dict[str, float]:
  """Returns `median_and_range` in milliseconds, of values in seconds."""
  return median_and_range(name, seconds, 1e3)


def run_module(module: str, *args: str, precision: str, **env: str) -> dict:
  """Runs a module in a new process and returns the JSON of its last line.

  Args:
    module: name of the module.
    *args: its command-line arguments.
    precision: see `Settings`.
    **env: additional environment variables.

  Raises:
    UserError: the process failed; the message has its last line of stderr.
  """
  shared = {
    'JAX_DEFAULT_MATMUL_PRECISION': PRECISIONS[precision][1],
    # This process may already hold memory of the accelerator.
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
