"""What a measurement was made on: part of every row."""

import os
import pathlib
import platform
import subprocess

import jax
import jaxlib

import maml_jax

ROOT = pathlib.Path(__file__).resolve().parent.parent


def machine() -> dict:
  """Device, cores, versions and commit, by name."""
  return {
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
    'platform': jax.default_backend(),
    'processor': processor(),
    'cores': cores(),
    'jax': jax.__version__,
    'jaxlib': jaxlib.__version__,
    'python': platform.python_version(),
    'maml_jax': maml_jax.__version__,
    'commit': commit(),
  }


def cores() -> int:
  """The cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1  # not Linux


def processor() -> str:
  """The model of the CPU, as far as the system tells."""
  info = pathlib.Path('/proc/cpuinfo')
  if info.is_file():
    for line in info.read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor() or platform.machine()


def commit() -> str:
  """The commit of the checkout, '+' behind it if files differ from it."""

  def git(*args):
    done = subprocess.run(
      ['git', '-C', ROOT, *args], capture_output=True, text=True
    )
    return done.stdout.strip() if done.returncode == 0 else None

  try:
    name, changes = git('rev-parse', '--short', 'HEAD'), git('status', '-s')
  except FileNotFoundError:  # no git
    name = None
  return f'{name}+' if name and changes else name or 'unknown'
