"""Several processes, on one host or many, that run as one program.

JAX's distributed runtime connects them: each process has devices of its own and
sees the devices of all. Every process runs the same Python code. Anything read
from a clock, a signal or a file may differ between processes and leave them
waiting for each other forever, so such values go through `on_main_process` or
`LaggedMax`.

Only the main process, number 0, prints and writes metrics. All processes share
the file system that holds the workdir.
"""

import contextlib
import functools
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maml_jax.utils import console
from maml_jax.utils.errors import UserError

__all__ = [
  'EXIT_PEER_LOST',
  'LaggedMax',
  'connect_devices',
  'describe_devices',
  'exit_bounded',
  'initialize',
  'is_main_process',
  'is_multiprocess',
  'is_peer_failure',
  'launched_as_multiprocess',
  'on_main_process',
  'report_failure',
  'require_initialized',
]

# A process that sends no heartbeat for this long is considered dead.
HEARTBEAT_TIMEOUT_SECONDS = 30
# All processes must connect within this time.
CONNECT_TIMEOUT_SECONDS = 300
# A failing process waits this long for the others before it exits.
EXIT_GRACE_SECONDS = 5
# The exit status after another process was lost: restart all of them.
EXIT_PEER_LOST = os.EX_TEMPFAIL


def launched_as_multiprocess(environment: Mapping[str, str]) -> bool:
  """Returns whether a launcher has started this process as one of several.

  Recognizes Slurm (`srun` with more than one task), Open MPI (`mpirun`), TPU
  pods on Kubernetes, and JAX_COORDINATOR_ADDRESS. Only reads variables.

  Args:
    environment: such as `os.environ`.
  """

  def number(name):
    value = environment.get(name, '')
    return int(value) if value.isdecimal() else 1

  return (
    'JAX_COORDINATOR_ADDRESS' in environment
    or ('SLURM_PROCID' in environment and number('SLURM_STEP_NUM_TASKS') > 1)
    or number('OMPI_COMM_WORLD_SIZE') > 1
    or ',' in environment.get('TPU_PROCESS_ADDRESSES', '')
    or ',' in environment.get('TPU_WORKER_HOSTNAMES', '')
  )


def initialize(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  detect: bool = False,
) -> None:
  """Connects to the other processes, if any; call before using JAX.

  Args:
    coordinator: 'HOST:PORT' of process 0.
    num_processes: number of processes.
    process_id: the number of this process, 0 to `num_processes` - 1.
    detect: query the cluster for the arguments that are missing, as
      `jax.distributed.initialize` does. Implied if a launcher has started
      several processes.

  Raises:
    UserError: arguments are missing, or the other processes cannot be reached.
  """
  given = coordinator, num_processes, process_id
  is_explicit = None not in given
  if any(x is not None for x in given) and not is_explicit and not detect:
    raise UserError(
      '--coordinator, --num_processes and --process_id must be given together; '
      'or use --distributed to query the cluster for the missing ones'
    )
  is_launched = detect or launched_as_multiprocess(os.environ)
  if not is_explicit and not is_launched:
    return
  if num_processes is not None and process_id is not None:
    if not 0 <= process_id < num_processes:
      raise UserError(
        f'--process_id={process_id}: must be in 0..{num_processes - 1} with '
        f'--num_processes={num_processes}'
      )
  # JAX would catch SIGTERM, which `signals.StopSignal` does during training.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      *given,
      cluster_detection_method='deactivate' if is_explicit else None,
      initialization_timeout=CONNECT_TIMEOUT_SECONDS,
      heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
    )
  except (ValueError, RuntimeError) as error:
    reason = str(error).partition('\n')[0]
    raise UserError(
      f'cannot connect to the other processes: {reason}'
    ) from error


def require_initialized() -> None:
  """Checks that all processes are connected and silences all but the main one.

  Raises:
    UserError: the devices are shared with other processes, but this process is
      not connected to them.
  """
  if not is_multiprocess():
    return
  if not jax.distributed.is_initialized():
    raise UserError(
      f'these devices are shared by {jax.process_count()} processes: start '
      'each of them with --distributed'
    )
  if not is_main_process():
    console.silence()


def is_multiprocess() -> bool:
  """Returns whether there is more than one process."""
  return jax.process_count() > 1


def is_main_process() -> bool:
  """Returns whether this process prints and writes files."""
  return jax.process_index() == 0


def describe_devices() -> str:
  """Returns, for example, '8 x NVIDIA H200 in 2 processes'."""
  processes = jax.process_count()
  more = f' in {processes} processes' if processes > 1 else ''
  return f'{jax.device_count()} x {jax.devices()[0].device_kind}{more}'


def on_main_process(function: Callable) -> Any:
  """Calls a function on the main process and returns its result on all.

  Args:
    function: takes no arguments and returns a JSON-serializable value.

  Raises:
    UserError: on all processes, if the function raises UserError or OSError.
  """
  if not is_multiprocess():
    return function()
  result = {}
  if is_main_process():
    try:
      result = {'value': function()}
    except (UserError, OSError) as error:
      result = {'error': str(error)}
  result = json.loads(_broadcast(json.dumps(result).encode()))
  if 'error' in result:
    raise UserError(result['error'])
  return result['value']


def _broadcast(content: bytes) -> bytes:
  """Returns the content passed by the main process."""
  send = multihost_utils.broadcast_one_to_all
  size = int(send(np.int32(len(content))))
  buffer = np.zeros(size, np.uint8)
  if is_main_process():
    buffer[:] = np.frombuffer(content, np.uint8)
  return np.asarray(send(buffer), np.uint8).tobytes()


class LaggedMax:
  """The maximum over processes of a number, delayed by one call.

  All processes call it equally often. It does not block: each call returns the
  maximum of the previous call, which the devices have computed meanwhile. With
  a single process it returns the number itself.

  Args:
    initial: the result of the first call.
  """

  def __init__(self, initial: float):
    self._result = initial

  def __call__(self, number: float) -> float:
    if not is_multiprocess():
      return number
    result, self._result = self._result, _maximum_over_processes(number)
    return float(result)


def connect_devices(devices: Sequence) -> None:
  """Connects the devices of all processes, if there are several.

  CPU devices wait at most 30 seconds for each other while connecting, and
  without limit afterwards. Connecting before the first step matters because
  then one process may compile while another has its program cached.
  """
  if is_multiprocess():
    _maximum_over_processes(0.0, tuple(devices)).block_until_ready()


def _maximum_over_processes(
  number: float, devices: tuple | None = None
) -> jax.Array:
  devices = devices or tuple(jax.devices())
  sharded, maximum = _maximum_program(devices)
  numbers = jax.make_array_from_callback(
    (len(devices),), sharded, lambda _: np.array([number], np.float32)
  )
  return maximum(numbers)


@functools.cache
def _maximum_program(devices: tuple):
  mesh = Mesh(np.array(devices), 'device')
  sharded, replicated = (
    NamedSharding(mesh, P(*axes)) for axes in (['device'], [])
  )
  return sharded, jax.jit(jnp.max, out_shardings=replicated)


def is_peer_failure(error: Exception) -> bool:
  """Returns whether an error probably means that another process has exited."""
  is_own = str(error).startswith(('INVALID_ARGUMENT', 'RESOURCE_EXHAUSTED'))
  is_from_jax = isinstance(error, jax.errors.JaxRuntimeError)
  return is_multiprocess() and is_from_jax and not is_own


def report_failure(error: Exception) -> int:
  """Prints why one of several processes fails; returns its exit status."""
  if not is_peer_failure(error):
    traceback.print_exception(error)
    return 1
  reason = str(error).partition('\n')[0][:300]
  console.print_error(
    f'process {jax.process_index()} lost another process ({reason}); restart '
    'all of them to resume from the last checkpoint'
  )
  return EXIT_PEER_LOST


def exit_bounded(status: int) -> None:
  """Exits a failed process within a few seconds.

  The other processes may fail for the same reason and be about to report it,
  or they may be waiting for this one and will notice that it has exited.
  """
  with contextlib.suppress(Exception):
    sys.stdout.flush()
    sys.stderr.flush()
  shutdown = threading.Thread(target=jax.distributed.shutdown, daemon=True)
  shutdown.start()
  shutdown.join(EXIT_GRACE_SECONDS)
  os._exit(status)
