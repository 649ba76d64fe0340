"""Distributes the tasks of a meta-batch over devices and over time."""

import contextlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maml_jax.ops import vmap_merged
from maml_jax.platforms import uses_all_gather
from maml_jax.types import PyTree
from maml_jax.utils import distributed
from maml_jax.utils.errors import UserError
from maml_jax.utils.trees import combine, is_inexact, partition

__all__ = [
  'MAX_IMAGE_MEMORY_SHARE',
  'TASK_AXIS',
  'DeviceLayout',
  'TaskSharding',
  'choose_layout',
  'constrain_replicated',
  'first_devices',
  'make_mesh',
  'map_tasks',
  'mean_over_tasks',
  'nearest_multiples',
  'one_device_per_core',
  'require_divisible',
]

TASK_AXIS = 'task'
# The images of a split stay on the host if they need more of a device's memory.
MAX_IMAGE_MEMORY_SHARE = 1 / 3
_WAIT_FOR_DEVICES = '--xla_cpu_collective_call_terminate_timeout_seconds=86400'
_FORCED_DEVICE_COUNT = 'xla_force_host_platform_device_count'


def make_mesh(devices: Sequence | None = None) -> Mesh:
  """Returns a one-dimensional mesh over `devices`, default all of them.

  `jax.make_mesh` fails for TPUs that do not fill a box, such as 3 of 4.
  """
  devices = jax.devices() if devices is None else devices
  return Mesh(np.asarray(devices), (TASK_AXIS,), axis_types=(AxisType.Auto,))


def first_devices(number: int) -> list:
  """Returns `number` devices, equally many of each process."""
  share = number // jax.process_count()
  return [
    device
    for process in range(jax.process_count())
    for device in jax.local_devices(process_index=process)[:share]
  ]


def one_device_per_core(meta_batch_size: int, tasks_per_chunk: int = 1) -> None:
  """Makes JAX use each CPU core as a device, as far as the tasks divide evenly.

  One CPU device runs many small operations on a single core; several devices
  keep all cores busy. Has no effect on accelerators, if the number of CPU
  devices is already configured, or once JAX is initialized.

  Args:
    meta_batch_size: T, tasks per meta-batch.
    tasks_per_chunk: tasks vectorized at a time on one device.
  """
  is_configured = jax.config.values['jax_num_cpu_devices'] > 0
  if is_configured or _FORCED_DEVICE_COUNT in os.environ.get('XLA_FLAGS', ''):
    return
  if hasattr(os, 'sched_getaffinity'):
    cores = len(os.sched_getaffinity(0))
  else:  # not Linux
    cores = os.cpu_count() or 1
  counts = [
    n
    for n in range(1, cores + 1)
    if meta_batch_size % (n * tasks_per_chunk) == 0
  ]
  with contextlib.suppress(RuntimeError):
    jax.config.update('jax_num_cpu_devices', max(counts, default=1))
    # By default, XLA aborts the process if a device waits 40 s for another one,
    # which happens on busy machines.
    flags = os.environ.get('XLA_FLAGS', '')
    os.environ['XLA_FLAGS'] = f'{_WAIT_FOR_DEVICES} {flags}'.strip()


def mean_over_tasks(
  fn: Callable,
  mesh: Mesh | None = None,
  tasks_per_chunk: int | None = None,
  *,
  merge_tasks: bool = False,
) -> Callable:
  """Maps `fn` over the tasks of a meta-batch and averages part of its results.

  Each device processes its tasks chunk by chunk; the tasks of a chunk are
  vectorized. Gradients taken inside `fn` need the memory of one chunk.

  Args:
    fn: `fn(shared, task) -> (averaged, kept)`, pytrees of arrays.
    mesh: from `make_mesh`; None does not distribute the tasks.
    tasks_per_chunk: tasks vectorized at a time; None vectorizes all tasks of a
      device, 1 processes them one by one.
    merge_tasks: whether a network in `fn` processes the channels of the tasks
      of a chunk side by side, see `ops.merge_channels`.

  Returns:
    A function of (shared, tasks), each leaf of `tasks` with a leading axis T,
    that returns `averaged`, the mean over the T tasks, and `kept`, each leaf
    with a leading axis T. Integers and random keys cannot be averaged; they
    are those of the first task.

  Raises:
    UserError: when called, if T is not a multiple of devices times
      `tasks_per_chunk`.
  """

  def split(shared, task):
    averaged, kept = fn(shared, task)
    averaged, others = partition(is_inexact(averaged), averaged)
    return averaged, (others, kept)

  local = _on_one_device(split, tasks_per_chunk, merge_tasks)

  def on_device(shared, tasks):
    assert mesh is not None
    # Without this cast, jax.grad would sum the gradients of shared params over
    # devices, including the inner gradients of different tasks.
    to_varying = partial(lax.pcast, axis_name=TASK_AXIS, to='varying')
    averaged, kept = local(to_varying(shared), tasks, to_varying)
    if uses_all_gather(mesh):
      return jax.tree.map(lambda x: x[None], averaged), kept
    return lax.pmean(averaged, TASK_AXIS), kept

  def run(shared, tasks):
    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    require_divisible(num_tasks, mesh.size if mesh else 1, tasks_per_chunk)
    if mesh is None:
      averaged, (others, kept) = local(shared, tasks)
      return combine(averaged, _first(others)), kept
    averaged, (others, kept) = jax.shard_map(
      on_device,
      mesh=mesh,
      in_specs=(P(), P(TASK_AXIS)),
      out_specs=(
        P(TASK_AXIS) if uses_all_gather(mesh) else P(),
        P(TASK_AXIS),
      ),
    )(shared, tasks)
    if uses_all_gather(mesh):
      gathered = constrain_replicated(averaged, mesh)
      averaged = jax.tree.map(lambda x: x.mean(0), gathered)
    others = constrain_replicated(_first(others), mesh)
    return combine(averaged, others), kept

  return run


def _first(tree):
  """Returns the values of the first task, for leaves with a leading axis T."""
  return jax.tree.map(lambda x: x[0], tree)


def map_tasks(
  fn: Callable, mesh: Mesh | None = None, tasks_per_chunk: int | None = None
) -> Callable:
  """Maps `fn` over tasks, distributed as in `mean_over_tasks`.

  Args:
    fn: `fn(shared, task) -> pytree of arrays`.
    mesh: see `mean_over_tasks`.
    tasks_per_chunk: see `mean_over_tasks`.

  Returns:
    A function of (shared, tasks), each leaf of `tasks` with a leading axis T,
    that returns the results of `fn`, each leaf with a leading axis T.

  Raises:
    UserError: when called; see `mean_over_tasks`.
  """
  run = mean_over_tasks(
    lambda shared, task: ((), fn(shared, task)), mesh, tasks_per_chunk
  )
  return lambda shared, tasks: run(shared, tasks)[1]


def _on_one_device(fn, tasks_per_chunk, merge_tasks):
  """Returns `mean_over_tasks` for the tasks of one device."""
  vmap = vmap_merged if merge_tasks else jax.vmap

  def local(shared, tasks, to_varying=lambda x: x):
    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    size = tasks_per_chunk or num_tasks
    num_chunks = num_tasks // size
    if num_chunks == 1 and size > 1:
      return run_chunk(shared, tasks)
    chunks = jax.tree.map(
      lambda x: x.reshape(num_chunks, size, *x.shape[1:]), tasks
    )

    def step(total, chunk):
      averaged, kept = run_chunk(shared, chunk)
      return jax.tree.map(lax.add, total, averaged), kept

    averaged, _ = jax.eval_shape(
      run_chunk, shared, jax.tree.map(lambda x: x[0], chunks)
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), averaged)
    total, kept = lax.scan(step, to_varying(zeros), chunks)
    return (
      jax.tree.map(lambda x: x / num_chunks, total),
      jax.tree.map(lambda x: x.reshape(num_tasks, *x.shape[2:]), kept),
    )

  def run_chunk(shared, tasks):
    if jax.tree.leaves(tasks)[0].shape[0] == 1:
      averaged, kept = fn(shared, jax.tree.map(lambda x: x[0], tasks))
      return averaged, jax.tree.map(lambda x: x[None], kept)
    averaged, kept = vmap(fn, (None, 0))(shared, tasks)
    return jax.tree.map(lambda x: x.mean(0), averaged), kept

  return local


def constrain_replicated(tree: PyTree, mesh: Mesh) -> PyTree:
  """Constrains arrays to be replicated over all devices; call under jit."""
  return lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


class TaskSharding(NamedTuple):
  """The devices and how tasks are distributed over them.

  With several processes, each one places its share on its own devices.

  Attributes:
    mesh: the devices. None is supported by `local_task_ids` and `shard` only.
    tasks_per_chunk: tasks vectorized at a time on one device; None: all.
    query_splits: number of parts of each task's query set, one per device.
    merge_tasks: see `mean_over_tasks`.
  """

  mesh: jax.sharding.Mesh | None
  tasks_per_chunk: int | None
  query_splits: int = 1
  merge_tasks: bool = False

  def replicate(self, tree: PyTree) -> PyTree:
    """Replicates arrays over all devices; every process passes the same."""
    assert self.mesh is not None
    sharding = NamedSharding(self.mesh, P())
    if not distributed.is_multiprocess():
      return jax.device_put(tree, sharding)

    def place(x):
      x = np.asarray(x)
      return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])

    return jax.tree.map(place, tree)

  def local_task_ids(self, num_tasks: int) -> np.ndarray:
    """Returns which of `num_tasks` tasks this process computes: [n] int."""
    task_ids = np.arange(num_tasks)
    if self.mesh is None:
      return task_ids
    sharding = NamedSharding(self.mesh, P(TASK_AXIS))
    slices = sharding.addressable_devices_indices_map(task_ids.shape).values()
    return np.unique(np.concatenate([task_ids[at] for at in slices]))

  def shard(self, tree: PyTree, axis: int) -> PyTree:
    """Shards arrays along the task axis.

    Args:
      tree: arrays with the tasks of this process, see `local_task_ids`.
      axis: their task axis.

    Returns:
      Global arrays with the tasks of all processes.
    """
    if self.mesh is None:
      return tree
    sharding = NamedSharding(self.mesh, P(*[None] * axis, TASK_AXIS))

    def place(x):
      shape = list(x.shape)
      shape[axis] *= jax.process_count()
      return jax.make_array_from_process_local_data(sharding, x, tuple(shape))

    return jax.tree.map(place, tree)

  def fits_in_memory(self, num_bytes: int) -> bool:
    """Returns whether every device has room for a data set.

    Args:
      num_bytes: its size as the devices store it, including padding.
    """
    assert self.mesh is not None
    device = self.mesh.local_devices[0]
    memory = (device.memory_stats() or {}).get('bytes_limit')
    if memory is None:  # CPU devices share the memory of the host
      memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
      memory //= len(self.mesh.local_devices)
    return num_bytes <= MAX_IMAGE_MEMORY_SHARE * memory


class DeviceLayout(NamedTuple):
  """How a meta-batch is distributed over devices.

  Attributes:
    devices: number of devices used, the same in every process.
    query_splits: number of parts of each task's query set, one per device; 1
      unless there are more devices than tasks.
  """

  devices: int
  query_splits: int


def choose_layout(
  meta_batch_size: int,
  num_devices: int,
  tasks_per_chunk: int | None = None,
  *,
  processes: int = 1,
  queries: int = 0,
) -> DeviceLayout:
  """Chooses the layout that uses the most devices.

  Args:
    meta_batch_size: T, tasks per meta-batch.
    num_devices: number of devices of all processes.
    tasks_per_chunk: tasks vectorized at a time on one device; None: all.
    processes: number of processes, each of which needs a device.
    queries: query images of a task that may be split; 0 to never split them.

  Raises:
    UserError: there is no such layout; the message suggests numbers that work.
  """
  size = tasks_per_chunk or 1
  layouts = [
    DeviceLayout(n, 1)
    for n in range(processes, num_devices + 1, processes)
    if meta_batch_size % (n * size) == 0
  ]
  if size == 1 and queries:
    layouts += [
      DeviceLayout(meta_batch_size * splits, splits)
      for splits in range(2, num_devices // meta_batch_size + 1)
      if queries % splits == 0
      if meta_batch_size * splits % processes == 0
    ]
  if not layouts:
    unit = 'processes' if processes > 1 else 'device(s)'
    require_divisible(meta_batch_size, processes, tasks_per_chunk, unit)
  return max(layouts)


def nearest_multiples(number: int, unit: int) -> list[int]:
  """Returns the positive multiples of `unit` next to `number`."""
  below = number // unit * unit
  return [below, below + unit] if below else [unit]


def require_divisible(
  num_tasks: int,
  num_devices: int,
  tasks_per_chunk: int | None = None,
  unit: str = 'device(s)',
) -> None:
  """Checks that tasks divide evenly over devices and chunks.

  Args:
    num_tasks: T, tasks per meta-batch.
    num_devices: devices that the tasks are distributed over.
    tasks_per_chunk: tasks vectorized at a time on one device; None: all.
    unit: what the message calls the devices.

  Raises:
    UserError: T is not a multiple of devices times `tasks_per_chunk`; the
      message suggests numbers that work.
  """
  multiple = num_devices * (tasks_per_chunk or 1)
  if num_tasks % multiple == 0:
    return
  divisors = [
    str(n)
    for n in range(1, num_devices + 1)
    if num_tasks % (n * (tasks_per_chunk or 1)) == 0
  ]
  suggestions = map(str, nearest_multiples(num_tasks, multiple))
  advice = f'use {" or ".join(suggestions)} tasks'
  if divisors:
    advice += f', or {" or ".join(divisors)} {unit}'
  raise UserError(
    f'{num_tasks} tasks cannot be divided evenly over {num_devices} {unit}'
    + (f' in chunks of {tasks_per_chunk}' if tasks_per_chunk else '')
    + f': {advice}'
  )
