"""Several processes, on one host or on many, that are one program.

JAX's distributed runtime joins them: each has devices of its own, and all see
those of all. Every process runs the same Python; what it reads from a clock, a
signal or a file could lead it elsewhere than the others, who would wait for it
for ever. So such things go through `first` or `Largest`, or through JAX's
preemption service (`workdir.Stop`).

The first process alone writes metrics and speaks; the workdir is on a file
system that all share.
"""

import contextlib
import functools
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from maml_jax.utils import console
from maml_jax.utils.errors import UserError

# A process that has not been heard of for so long is dead.
HEARTBEAT_TIMEOUT_SECONDS = 30
# All processes must have come within so long.
CONNECT_TIMEOUT_SECONDS = 300
# A process that fails waits for so long whether the others do, too.
EXIT_GRACE_SECONDS = 5
# The exit status of a process that has lost another: try again.
EXIT_PEER_LOST = os.EX_TEMPFAIL


def launched_as_multiprocess(environment: Mapping[str, str]) -> bool:
  """Whether a launcher has started several processes, this one among them.

  That of Slurm (`srun` of more than one task), Open MPI (`mpirun`), a TPU pod
  on Kubernetes, or whoever sets JAX_COORDINATOR_ADDRESS. Looks at variables
  alone: nothing is waited for.

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
    preemption: bool = True,
) -> None:
  """Joins the other processes, if there are any; before JAX is used.

  Args:
    coordinator: 'HOST:PORT' of the process 0.
    num_processes: how many there are.
    process_id: which this is, 0 to `num_processes` - 1.
    detect: ask the cluster for what is not given, as
      `jax.distributed.initialize` does. It is asked anyway where a launcher
      clearly has started several processes.
    preemption: leave SIGTERM to JAX's preemption service.

  Raises:
    UserError: something is missing, or the others do not come.
  """
  given = coordinator, num_processes, process_id
  by_hand = None not in given
  if any(x is not None for x in given) and not by_hand and not detect:
    raise UserError(
        '--coordinator, --num_processes and --process_id go together; or '
        '--distributed, to ask the cluster for the rest'
    )
  if not by_hand and not detect and not launched_as_multiprocess(os.environ):
    return
  if by_hand and not 0 <= process_id < num_processes:
    raise UserError(
        f'--process_id={process_id}: with --num_processes={num_processes} '
        f'they are 0 to {num_processes - 1}'
    )
  jax.config.update('jax_enable_preemption_service', preemption)
  try:
    jax.distributed.initialize(
        *given,
        cluster_detection_method='deactivate' if by_hand else None,
        initialization_timeout=CONNECT_TIMEOUT_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
    )
  except (ValueError, RuntimeError) as error:
    reason = str(error).partition('\n')[0]
    raise UserError(f'cannot join the other processes: {reason}') from error


def require_initialized() -> None:
  """Lets the first process alone speak; once the devices may be used.

  Raises:
    UserError: there are other processes, but this one has not joined them.
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
  """Whether there are other processes."""
  return jax.process_count() > 1


def is_main_process() -> bool:
  """Whether this is the process that writes and speaks."""
  return jax.process_index() == 0


def on_main_process(function: Callable):
  """Lets the first process call a function, and all have what it returns.

  Args:
    function: of no arguments; returns what JSON can hold.

  Raises:
    UserError: in all processes, if it does in the first, or an OSError.
  """
  if not is_multiprocess():
    return function()
  answer = {}
  if is_main_process():
    try:
      answer = {'value': function()}
    except (UserError, OSError) as error:
      answer = {'error': str(error)}
  answer = json.loads(_broadcast(json.dumps(answer).encode()))
  if 'error' in answer:
    raise UserError(answer['error'])
  return answer['value']


def _broadcast(content: bytes) -> bytes:
  """The content that the first process has."""
  send = multihost_utils.broadcast_one_to_all
  size = int(send(np.int32(len(content))))
  buffer = np.zeros(size, np.uint8)
  if is_main_process():
    buffer[:] = np.frombuffer(content, np.uint8)
  return np.asarray(send(buffer), np.uint8).tobytes()


class LaggedMax:
  """The largest of numbers that processes measure, each its own.

  Called once with each number, by all processes alike. None waits: the answer
  is that to the call before, which the devices have had time to find. One
  process alone gets its own number back at once.

  Args:
    start: the answer to the first call.
  """

  def __init__(self, start: float):
    self._answer = start

  def __call__(self, number: float) -> float:
    if not is_multiprocess():
      return number
    answer, self._answer = self._answer, _largest(number)
    return float(answer)


def connect_devices(devices: Sequence[jax.Device]) -> None:
  """Connects devices of all processes, if there are several.

  CPUs wait 30 seconds for each other when they are connected, and then as long
  as it takes. So that is not left to the first step, for which one process may
  compile when another has its program already.
  """
  if is_multiprocess():
    _largest(0.0, tuple(devices)).block_until_ready()


def _largest(number: float, devices: tuple | None = None) -> jax.Array:
  devices = devices or tuple(jax.devices())
  each, maximum = _maximum(devices)
  numbers = jax.make_array_from_callback(
      (len(devices),), each, lambda _: np.array([number], np.float32)
  )
  return maximum(numbers)


@functools.cache
def _maximum(devices: tuple):
  mesh = Mesh(np.array(devices), 'device')
  each, whole = (NamedSharding(mesh, P(*axes)) for axes in (['device'], []))
  return each, jax.jit(jnp.max, out_shardings=whole)


def is_peer_failure(error: Exception) -> bool:
  """Whether an error is likely to be that another process has ended."""
  own = str(error).startswith(('INVALID_ARGUMENT', 'RESOURCE_EXHAUSTED'))
  by_jax = isinstance(error, jax.errors.JaxRuntimeError)
  return is_multiprocess() and by_jax and not own


def report_failure(error: Exception) -> int:
  """Says why a process of several has to end; returns its exit status."""
  if not is_peer_failure(error):
    traceback.print_exception(error)
    return 1
  reason = str(error).partition('\n')[0][:300]
  console.print_error(
      f'process {jax.process_index()} has lost another ({reason}); started '
      'again, all go on from the last checkpoint'
  )
  return EXIT_PEER_LOST


def exit_bounded(status: int) -> None:
  """Ends a process that has failed, perhaps alone, in bounded time.

  The others may have failed alike and be about to say so. Or they are waiting
  for this one: they see that it ends.
  """
  with contextlib.suppress(Exception):
    sys.stdout.flush()
    sys.stderr.flush()
  waiting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
  waiting.start()
  waiting.join(EXIT_GRACE_SECONDS)
  os._exit(status)
