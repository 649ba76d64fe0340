"""Compiles the train step of `main.py` for a TPU or GPU that is not there.

  python -m benchmarks.aot --platform tpu --topology v5e:2x2 --chips 1 \\
    --config mini_5w1s --inner.remat
  python -m benchmarks.aot --platform cuda --target h100

`make aot` creates the environment .venv-aot with the compiler of TPUs; `make
aot EXTRAS=cuda` adds that of NVIDIA GPUs, 4 GB. Fields of the config are flags,
as in `main.py`. One compilation for a TPU takes minutes, one for a GPU less.

Nothing runs: the numbers describe the compiled program of one meta-iteration,
per chip. Memory is what the compiler allocates. Bytes, kernels, copies and
convolutions are counted in its text, with the padding of tiles, and loops by
their lengths. On TPUs `ms` is the compiler's own estimate of each kernel in
cycles, at the clock of the chip; there is none on GPUs. `roofline ms` is the
longer of the operations at the peak rate and the bytes at the full memory
bandwidth. A kernel counts as convolution if it contains one, otherwise as
pooling or norm if it contains a part of them.
"""

import argparse
import importlib.util
import json
import math
import os
import pathlib
import sys
import time
from functools import partial

# The process itself runs on the CPU. The compiler of TPUs must not look for a
# chip, nor lock the machine.
os.environ |= {
  'JAX_PLATFORMS': 'cpu',
  'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_ID': '0',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}

import jax  # noqa: E402, after the platform is chosen
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from benchmarks import aot_hlo  # noqa: E402
from benchmarks.chips import CHIPS, Chip  # noqa: E402
from benchmarks.flops import count_flops  # noqa: E402
from maml_jax import config as config_lib  # noqa: E402
from maml_jax import data  # noqa: E402
from maml_jax.experiment import setup  # noqa: E402
from maml_jax.sharding import TaskSharding  # noqa: E402
from maml_jax.train import (  # noqa: E402
  make_programs,
  make_tasks,
  may_split_queries,
)
from maml_jax.train_step import init_state  # noqa: E402
from maml_jax.types import Dataset  # noqa: E402
from maml_jax.utils.errors import UserError, check_choice  # noqa: E402
from maml_jax.utils.files import oserror_as_user_error  # noqa: E402

KINDS = ('convolution', 'pooling', 'norm', 'copy', 'other', 'all-reduce')
CONVOLUTIONS = ('forward', 'backward-input', 'backward-filter', 'grouped')


# What the compiler of each platform is called.
COMPILERS = {
  'tpu': ('libtpu', 'tpu'),
  'cuda': ('jax_cuda12_plugin', 'cuda'),
}
TARGETS = pathlib.Path(__file__).parent / 'aot_targets'


class DescribedSharding(TaskSharding):
  """Devices that do not exist: arrays on them are shapes."""

  def replicate(self, tree):
    sharding = NamedSharding(self.mesh, PartitionSpec())

    def describe(x):
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(describe, tree)


def described_devices(platform: str, topology: str, target: str) -> list:
  """Returns the devices of a machine that is not there.

  Args:
    platform: 'tpu' or 'cuda'.
    topology: such as 'v5e:2x2'; for GPUs, processes x hosts x devices.
    target: the GPU, a file of `aot_targets` without suffix.

  Raises:
    UserError: the compiler of the platform is missing, or it does not know the
      machine.
  """
  module, extra = COMPILERS[platform]
  if importlib.util.find_spec(module) is None:
    raise UserError(
      f'--platform={platform} needs the package {module}: create the '
      f'environment with `make aot EXTRAS={extra}` and run '
      '`.venv-aot/bin/python -m benchmarks.aot`'
    )
  options = {}
  if platform == 'cuda':
    # Without a GPU there is nothing to time variants of kernels on.
    flags = os.environ.get('XLA_FLAGS', '')
    os.environ['XLA_FLAGS'] = f'{flags} --xla_gpu_autotune_level=0'
    known = sorted(path.stem for path in TARGETS.glob('*.txtpb'))
    check_choice('--target', target, known)
    text = (TARGETS / f'{target}.txtpb').read_text()
    options = {'topology': topology, 'target_config': text}
  try:
    machine = topologies.get_topology_desc(
      platform=platform, topology_name=topology, **options
    )
  except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    raise UserError(f'--topology={topology}: {reason}') from error
  return list(machine.devices)


def empty_dataset(config) -> Dataset:
  """Returns a data set of the size of the train split, with black images.

  Data sets whose size depends on their files are loaded.

  Raises:
    UserError: the data set must be loaded and is not prepared.
  """
  spec = data.spec(config.data.name)
  if not (spec.num_classes and spec.images_per_class):
    return setup.load_split(config, setup.train_phase(config))
  classes, per_class = spec.num_classes['train'], spec.images_per_class
  image = np.zeros((1, *spec.image_shape), np.uint8)
  return Dataset(
    np.broadcast_to(image, (classes * per_class, *spec.image_shape)),
    np.arange(classes * per_class, dtype=np.int32).reshape(classes, per_class),
    np.full(classes, per_class, np.int32),
  )


def compile_train_step(config, devices: list):
  """Compiles the train step that `main.py` runs with a config.

  Args:
    config: its images are placed on the devices.
    devices: from `described_devices`.

  Returns:
    The traced program, the compiled one, and the sharding.

  Raises:
    UserError: the config does not fit the number of devices, or is not one
      of meta-training.
  """
  if config.train.objective != 'tasks':
    raise UserError(
      f'train.objective={config.train.objective}: only the step of '
      'meta-training is compiled; use train.objective=tasks'
    )
  sharding = DescribedSharding(
    *setup.train_sharding(
      config, split_queries=may_split_queries(config), devices=devices
    )
  )
  if sharding.mesh.size < len(devices):
    raise UserError(
      f'--chips={len(devices)}: train.meta_batch_size='
      f'{config.train.meta_batch_size} uses {sharding.mesh.size} of them'
    )
  config.data.placement = 'device'
  is_regression = config.data.name in data.REGRESSIONS
  with setup.matmul_precision(config):
    dataset = None if is_regression else empty_dataset(config)
    tasks, make_learner = make_tasks(config, sharding, dataset)
    tx = setup.make_outer_optimizer(config)
    make_state = partial(init_state, make_learner(), tx)
    state = jax.eval_shape(make_state, setup.rng_stream(config.seed, 0))
    step = make_programs(config, make_learner, tx, tasks, sharding)(0)
    traced = step.trace(sharding.replicate(state), tasks.shared, 1)
    return traced, traced.lower().compile(), sharding


def measure(config, devices: list, chip: Chip, save: str | None = None) -> dict:
  """Compiles a train step and describes it; see the module.

  Args:
    config: the config of a run.
    devices: from `described_devices`.
    chip: what they are.
    save: a file to write the text of the compiled program to; default none.

  Returns:
    A row: name -> number.
  """
  start = time.monotonic()
  traced, compiled, sharding = compile_train_step(config, devices)
  seconds = time.monotonic() - start
  text = compiled.as_text()
  if save:
    with oserror_as_user_error(save):
      pathlib.Path(save).write_text(text)
  memory = compiled.memory_analysis()
  # The outer loop over meta-iterations runs once.
  flops = count_flops(traced.jaxpr, while_trips=1) / sharding.mesh.size
  program = aot_hlo.summarize(aot_hlo.parse(text))
  params = jax.tree.leaves(traced.args_info[0][0].params)
  row = {
    'chips': sharding.mesh.size,
    'tasks': config.train.meta_batch_size / sharding.mesh.size,
    'parameters': sum(math.prod(x.shape) for x in params),
    'compile_s': seconds,
    'argument_mb': memory.argument_size_in_bytes / 1e6,
    'temporary_mb': memory.temp_size_in_bytes / 1e6,
    'peak_mb': memory.peak_memory_in_bytes / 1e6,
    'gflop': flops / 1e9,
    'moved_gb': program['moved_bytes'] / 1e9,
    'copied_gb': program['copied_bytes'] / 1e9,
    'kernels': program['kernels'],
    'all_reduces': program['all_reduces'],
    'all_reduce_mb': program['all_reduce_bytes'] / 1e6,
    'roofline_ms': 1e3
    * max(
      flops / chip.peak_flops[config.precision],
      program['moved_bytes'] / chip.memory_bandwidth,
    ),
  }
  for kind in CONVOLUTIONS:
    row[f'{kind}_convolutions'] = program['convolutions'].get(kind, 0)
  if chip.clock:
    cycles = program['cycles']
    row['ms'] = 1e3 * sum(cycles.values()) / chip.clock
    for kind in KINDS:
      row[f'{kind}_ms'] = 1e3 * cycles.get(kind, 0) / chip.clock
  return row


def format_row(row: dict) -> str:
  """Returns a row as one line for each number."""
  width = max(map(len, row))
  return '\n'.join(
    f'{name.replace("_", " "):{width}}  {format_number(value)}'
    for name, value in row.items()
  )


def format_number(value) -> str:
  """Returns a number with three digits and separators."""
  if not isinstance(value, float):
    return f'{value:,}' if isinstance(value, int) else str(value)
  digits = 0 if not value else max(0, 2 - math.floor(math.log10(abs(value))))
  return f'{value:,.{min(digits, 3)}f}'


def measure_command(args, overrides: list[str]) -> dict:
  """Returns the row that the command line asks for.

  Raises:
    UserError: the command line is invalid, a file cannot be written, or the
      compiler fails.
  """
  if args.chips < 1:
    raise UserError(f'--chips={args.chips}: must be at least 1')
  topology = args.topology or (
    'v5e:2x2' if args.platform == 'tpu' else f'1x1x{args.chips}'
  )
  name = topology.split(':')[0] if args.platform == 'tpu' else args.target
  what = '--topology: chip' if args.platform == 'tpu' else '--target'
  check_choice(what, name, CHIPS)
  config = config_lib.load(args.config, overrides)
  devices = described_devices(args.platform, topology, args.target)
  if args.chips > len(devices):
    raise UserError(
      f'--chips={args.chips}: {topology} has {len(devices)} chips'
    )
  for path in filter(None, (args.json, args.hlo)):
    check_writable(path)
  try:
    row = measure(config, devices[: args.chips], CHIPS[name], args.hlo)
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0]
    raise UserError(f'the compiler failed: {reason}') from error
  return {'name': ' '.join([args.config, *overrides]), 'chip': name, **row}


def check_writable(path: str | os.PathLike) -> None:
  """Raises UserError unless a file can be written; creates it if missing.

  Called before a compilation, which takes minutes.
  """
  with oserror_as_user_error(path), open(path, 'a'):
    pass


def append_row(path: str, row: dict) -> None:
  """Appends a row to a file, on a line of its own.

  Raises:
    UserError: the file cannot be written.
  """
  with oserror_as_user_error(path), open(path, 'a+b') as file:
    file.seek(max(0, file.tell() - 1))
    # An interrupted program may have left a part of a line.
    newline = b'' if file.read() in (b'', b'\n') else b'\n'
    file.write(newline + json.dumps(row).encode() + b'\n')


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.aot',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('--platform', choices=list(COMPILERS), default='tpu')
  add('--topology', help='default v5e:2x2, or 1x1xCHIPS for GPUs')
  add('--target', default='h100', help='the GPU; default h100')
  add('--chips', type=int, default=1, help='chips to use; default 1')
  add('--config', default='mini_5w1s', help='a preset or a file')
  add('--json', metavar='FILE', help='append the row to this file')
  add('--hlo', metavar='FILE', help='write the compiled program to this file')
  args, overrides = parser.parse_known_args(argv)
  try:
    row = measure_command(args, overrides)
    print(format_row(row))
    if args.json:
      append_row(args.json, row)
  except UserError as error:
    parser.error(str(error))
  return 0


if __name__ == '__main__':
  sys.exit(main())
