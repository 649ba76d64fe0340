"""Spreading the tasks of a meta-batch over devices and over time."""

import contextlib
import os
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from maml_jax.utils.errors import UserError

TASK_AXIS = 'task'
_FORCED = 'xla_force_host_platform_device_count'


def make_mesh(devices=None):
  """A one-dimensional mesh over `devices`, default all of them."""
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh(
      (len(devices),), (TASK_AXIS,), (AxisType.Auto,), devices=devices
  )


def first_devices(number: int) -> list:
  """So many devices, as many of each process; `number` is a multiple."""
  share = number // jax.process_count()
  return [
      device
      for process in range(jax.process_count())
      for device in jax.local_devices(process_index=process)[:share]
  ]


def one_device_per_core(num_tasks, chunk=1):
  """Makes a device of every core of a CPU, as many as the tasks divide over.

  One device runs many small operations on one core, whatever the others do;
  devices side by side keep all cores busy. Without effect on accelerators,
  where somebody has chosen the number of CPU devices, or once JAX has run.

  Args:
    num_tasks: T, tasks per meta-batch.
    chunk: tasks vectorised at a time on one device.
  """
  chosen = jax.config.jax_num_cpu_devices > 0
  if chosen or _FORCED in os.environ.get('XLA_FLAGS', ''):
    return
  if hasattr(os, 'sched_getaffinity'):
    cores = len(os.sched_getaffinity(0))
  else:  # not Linux
    cores = os.cpu_count() or 1
  fitting = [n for n in range(1, cores + 1) if num_tasks % (n * chunk) == 0]
  with contextlib.suppress(RuntimeError):
    jax.config.update('jax_num_cpu_devices', max(fitting, default=1))


def mean_over_tasks(fn, mesh=None, chunk=None):
  """Runs `fn` on every task of a meta-batch and averages a part of its result.

  The tasks of one device run in chunks, one chunk after another; the tasks of
  a chunk are vectorised. Gradients taken inside `fn` therefore need the memory
  of one chunk alone.

  Args:
    fn: `fn(shared, task) -> (averaged, kept)`, pytrees of arrays.
    mesh: from `make_mesh`; None runs all tasks where they are.
    chunk: tasks vectorised at a time; None is all of a device's at once, 1 is
      one after another.

  Returns:
    A function of (shared, tasks), each leaf of `tasks` with a leading axis T,
    that returns `averaged`, the mean over the T tasks, and `kept`, each leaf
    with a leading axis T.

  Raises:
    UserError: when called, if T is no multiple of devices times chunk.
  """

  local = _on_one_device(fn, chunk)

  def on_device(shared, tasks):
    # Unless told that they vary, jax.grad would sum the gradients of shared
    # params over devices, the inner gradients of unlike tasks among them.
    vary = partial(lax.pcast, axis_name=TASK_AXIS, to='varying')
    averaged, kept = local(vary(shared), tasks, vary)
    if uses_all_gather(mesh):
      return jax.tree.map(lambda x: x[None], averaged), kept
    return lax.pmean(averaged, TASK_AXIS), kept

  def run(shared, tasks):
    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    require_divisible(num_tasks, mesh.size if mesh else 1, chunk)
    if mesh is None:
      return local(shared, tasks)
    averaged, kept = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(P(), P(TASK_AXIS)),
        out_specs=(P(TASK_AXIS) if uses_all_gather(mesh) else P(), P(TASK_AXIS)),
    )(shared, tasks)
    if uses_all_gather(mesh):
      of_all = constrain_replicated(averaged, mesh)
      averaged = jax.tree.map(lambda x: x.mean(0), of_all)
    return averaged, kept

  return run


def _on_one_device(fn, chunk):
  """`mean_over_tasks` for the tasks of one device."""

  def local(shared, tasks, vary=lambda x: x):
    num_tasks = jax.tree.leaves(tasks)[0].shape[0]
    size = chunk or num_tasks
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
    total, kept = lax.scan(step, vary(zeros), chunks)
    return (
        jax.tree.map(lambda x: x / num_chunks, total),
        jax.tree.map(lambda x: x.reshape(num_tasks, *x.shape[2:]), kept),
    )

  def run_chunk(shared, tasks):
    if jax.tree.leaves(tasks)[0].shape[0] == 1:
      averaged, kept = fn(shared, jax.tree.map(lambda x: x[0], tasks))
      return averaged, jax.tree.map(lambda x: x[None], kept)
    averaged, kept = jax.vmap(fn, (None, 0))(shared, tasks)
    return jax.tree.map(lambda x: x.mean(0), averaged), kept

  return local


def uses_all_gather(mesh) -> bool:
  """Whether every device gets the sums of all devices and adds them itself.

  On CPUs: there an all-reduce between processes adds in another order than one
  between the devices of a process, and the results should be the same bits.
  """
  return mesh.devices.flat[0].platform == 'cpu'


def constrain_replicated(tree, mesh):
  """Under jit: whole on every device."""
  return lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


class DeviceLayout(NamedTuple):
  """How a meta-batch lies on the devices.

  Attributes:
    devices: how many are used, the same number in every process.
    parts: into how many parts each task's query set is split, each with a
      device of its own; 1 unless there are so many devices.
  """

  devices: int
  parts: int


def choose_layout(
    num_tasks: int,
    num_devices: int,
    chunk: int | None = None,
    *,
    processes: int = 1,
    queries: int = 0,
) -> DeviceLayout:
  """The layout that uses most of the devices there are.

  Args:
    num_tasks: T, tasks per meta-batch.
    num_devices: of all processes.
    chunk: tasks vectorised at a time on one device; None: all.
    processes: each needs a device that is used.
    queries: query images of a task that may be split; 0 if they may not.

  Raises:
    UserError: there is none; names numbers that would do.
  """
  size = chunk or 1
  fitting = [
      DeviceLayout(n, 1)
      for n in range(processes, num_devices + 1, processes)
      if num_tasks % (n * size) == 0
  ]
  if size == 1:
    fitting += [
        DeviceLayout(num_tasks * parts, parts)
        for parts in range(2, num_devices // num_tasks + 1)
        if queries % parts == 0 and num_tasks * parts % processes == 0
        if queries
    ]
  if not fitting:
    what = 'processes' if processes > 1 else 'device(s)'
    require_divisible(num_tasks, processes, chunk, what)
  return max(fitting)


def nearest_multiples(num_tasks: int, unit: int) -> list[int]:
  """The multiples of `unit` next to `num_tasks`, above 0."""
  below = num_tasks // unit * unit
  return [below, below + unit] if below else [unit]


def require_divisible(num_tasks, num_devices, chunk=None, what='device(s)'):
  """Refuses a meta-batch that does not divide evenly.

  Args:
    num_tasks: T, tasks per meta-batch.
    num_devices: devices they are spread over.
    chunk: tasks vectorised at a time on one device; None: all.
    what: they are, for the message.

  Raises:
    UserError: T is no multiple of devices times chunk; names numbers that are.
  """
  unit = num_devices * (chunk or 1)
  if num_tasks % unit == 0:
    return
  fitting = [
      str(n)
      for n in range(1, num_devices + 1)
      if num_tasks % (n * (chunk or 1)) == 0
  ]
  advice = f'take {" or ".join(map(str, nearest_multiples(num_tasks, unit)))} tasks'
  if fitting:
    advice += f', or {" or ".join(fitting)} {what}'
  raise UserError(
      f'{num_tasks} tasks do not divide over {num_devices} {what}'
      + (f' in chunks of {chunk}' if chunk else '')
      + f': {advice}'
  )
