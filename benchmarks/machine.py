"""Hardware and software versions, recorded with every measurement."""

import os
import pathlib
import platform
import subprocess

import jax
import jaxlib

import maml_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent


def describe_machine() -> dict:
  """Returns the device, CPU cores, versions and commit, by name."""
  return {
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
    'platform': jax.default_backend(),
    'processor': processor_name(),
    'cores': count_cores(),
    'jax': jax.__version__,
    'jaxlib': jaxlib.__version__,
    'python': platform.python_version(),
    'maml_jax': maml_jax.__version__,
    'commit': current_commit(),
  }


def count_cores() -> int:
  """Returns the number of CPU cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1  # not Linux


def processor_name() -> str:
  """Returns the model name of the CPU, or its architecture if unknown."""
  info = pathlib.Path('/proc/cpuinfo')
  if info.is_file():
    for line in info.read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor() or platform.machine()


def current_commit() -> str:
  """Returns the short commit hash, with '+' if files are modified."""

  def git(*args):
    done = subprocess.run(
      ['git', '-C', ROOT, *args], capture_output=True, text=True
    )
    return done.stdout.strip() if done.returncode == 0 else None

  try:
    name, changes = git('rev-parse', '--short', 'HEAD'), git('status', '-s')
  except FileNotFoundError:  # git is not installed
    name = None
  return f'{name}+' if name and changes else name or 'unknown'
