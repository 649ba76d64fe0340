"""What the platform of the devices decides, such as TPUs or GPUs.

See docs/performance.md, "Accelerators: compiled, not run".
"""

from jax.sharding import Mesh

__all__ = [
  'default_tasks_per_chunk',
  'merged_tasks_per_chunk',
  'mesh_platform',
  'unrolls_inner_loop',
  'uses_all_gather',
]

TPU_LANES = 128
# On other platforms, 10.
MAX_UNROLLED_STEPS = {'cpu': 0, 'tpu': 5}


def mesh_platform(mesh: Mesh) -> str:
  """Returns the platform of the devices of a mesh, such as 'cpu' or 'tpu'.

  It may differ from `jax.default_backend()`.
  """
  return mesh.devices.flat[0].platform


def default_tasks_per_chunk(mesh: Mesh) -> int | None:
  """Returns how many tasks a device should vectorize; None: all of them.

  A CPU runs the kernels of several tasks one after another anyway, and faster
  with a small working set. A TPU would store the tasks along a spatial axis of
  convolutions, which leaves lanes empty and needs more memory. A GPU needs the
  work of all tasks at once.

  Args:
    mesh: the devices, from `make_mesh`.
  """
  return 1 if mesh_platform(mesh) in ('cpu', 'tpu') else None


def merged_tasks_per_chunk(
  mesh: Mesh, width: int, tasks_per_device: int
) -> int:
  """Returns how many tasks a device should process with merged channels.

  On TPUs, as many as fill the lanes; 1 on other platforms.

  Args:
    mesh: the devices, from `make_mesh`.
    width: the largest number of channels of a layer.
    tasks_per_device: a multiple of the result.
  """
  if mesh_platform(mesh) != 'tpu':
    return 1
  counts = range(1, max(1, min(tasks_per_device, TPU_LANES // width)) + 1)
  return max(n for n in counts if tasks_per_device % n == 0)


def unrolls_inner_loop(mesh: Mesh, num_steps: int) -> bool:
  """Returns whether to compile each inner step separately.

  A GPU stores and loads each array of a loop that derivatives need by a kernel
  of its own, a third of all kernels; a TPU copies them. More steps take long to
  compile.

  Args:
    mesh: the devices, from `make_mesh`.
    num_steps: K.
  """
  return num_steps <= MAX_UNROLLED_STEPS.get(mesh_platform(mesh), 10)


def uses_all_gather(mesh: Mesh) -> bool:
  """Returns whether sums over devices use an all-gather, not an all-reduce.

  This is the case on CPUs, where an all-reduce between processes adds in a
  different order than one between the devices of a process, so that results
  would not be bit-identical.
  """
  return mesh_platform(mesh) == 'cpu'
