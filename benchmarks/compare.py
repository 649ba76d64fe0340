"""Times maml_jax and other libraries in turn, round by round.

  python -m benchmarks.compare [--pytorch_maml DIR] [--learn2learn DIR]
    [--python PYTHON]

DIR is a checkout of fmu2/PyTorch-MAML or of learnables/learn2learn. PYTHON is
an interpreter with PyTorch (for learn2learn also SciPy); default this one.

Each library runs in its own process and is idle while another one is timed, so
that all run under the same conditions. The ratio of a round is the time of the
other library divided by that of maml_jax: above 1, maml_jax is faster.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys

from benchmarks.machine import ROOT
from benchmarks.timing import median_and_range, milliseconds
from benchmarks.workload import COMPARED
from maml_jax.utils.errors import UserError
from maml_jax.utils.huge_pages import huge_pages_environment

# Library -> how its work differs from that of maml_jax.
LIBRARIES = {
  'pytorch_maml': 'nothing but the framework',
  'learn2learn': (
    'also adapts batch norm and keeps its running averages; processes tasks '
    'one after another; does not clip gradients'
  ),
}


class Worker:
  """A process that runs `benchmarks.worker`.

  Args:
    python: the interpreter.
    *args: arguments of the worker.
    use_huge_pages: enable huge pages, see `maml_jax.utils.huge_pages`.
  """

  def __init__(self, python: str, *args: str, use_huge_pages: bool):
    # All workers share the memory of the accelerator.
    env = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.5'} | os.environ
    if use_huge_pages:
      env |= huge_pages_environment()
    self._process = subprocess.Popen(
      [python, '-m', 'benchmarks.worker', *args],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env=env,
    )

  def wait_until_ready(self) -> dict:
    """Waits for the worker to start and returns its description.

    Raises:
      UserError: the worker cannot run.
    """
    description = json.loads(self._read_line())
    if 'error' in description:
      raise UserError(description['error'])
    return description

  def time_iteration(self) -> float:
    """Runs one iteration and returns its seconds, measured by the worker."""
    self._process.stdin.write('go\n')
    self._process.stdin.flush()
    return float(self._read_line())

  def _read_line(self) -> str:
    line = self._process.stdout.readline()
    if not line:
      raise UserError(f'worker exited: {" ".join(self._process.args)}')
    return line

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()


def start_workers(commands: dict[str, list[str]], huge_pages: bool):
  """Starts a worker for each library.

  A library that cannot run is skipped with a message.

  Args:
    commands: name -> interpreter and arguments.
    huge_pages: enable huge pages for the other libraries, too; maml_jax always
      uses them.

  Returns:
    name -> worker, and the descriptions of all workers in one dict.

  Raises:
    UserError: maml_jax itself cannot run, or an interpreter does not exist.
  """
  for python, *_ in commands.values():
    if not shutil.which(python):
      raise UserError(f'--python={python}: no such program')
  workers = {
    name: Worker(*command, use_huge_pages=huge_pages or name == 'maml_jax')
    for name, command in commands.items()
  }
  descriptions = {}
  for name, worker in list(workers.items()):
    try:
      descriptions |= worker.wait_until_ready()
    except UserError as error:
      workers.pop(name).close()
      if name == 'maml_jax':
        raise
      print(f'  {name} skipped: {error}', flush=True)
  return workers, descriptions


def time_rounds(
  workers: dict[str, Worker], count: int
) -> list[dict[str, float]]:
  """Times all workers in turn; prints and returns the seconds of each round."""
  for worker in workers.values():
    worker.time_iteration()  # warm up
  rounds = []
  for i in range(count):
    # The order alternates, so that drift of the machine cancels out.
    order = list(workers)[:: 1 if i % 2 else -1]
    times = {name: workers[name].time_iteration() for name in order}
    rounds.append(times)
    base = times['maml_jax']
    parts = [f'maml_jax {base:7.3f} s']
    parts += [
      f'{name} {times[name]:7.3f} s = {times[name] / base:5.2f} x'
      for name in workers
      if name != 'maml_jax'
    ]
    print('  ' + '   '.join(parts), flush=True)
  return rounds


def compare_workload(
  name: str, commands: dict[str, list[str]], count: int, huge_pages: bool
):
  """Times one workload in all libraries; yields a row for each other library.

  Args:
    name: of the workload.
    commands: see `start_workers`.
    count: number of rounds.
    huge_pages: see `start_workers`.
  """
  print(name, flush=True)
  workers, descriptions = start_workers(commands, huge_pages)
  try:
    rounds = time_rounds(workers, count) if len(workers) > 1 else []
  finally:
    for worker in workers.values():
      worker.close()
  for library in [name for name in workers if name != 'maml_jax']:
    ratios = [times[library] / times['maml_jax'] for times in rounds]
    print(
      f'  {library}: median ratio {statistics.median(ratios):.2f} '
      f'({min(ratios):.2f}..{max(ratios):.2f}); differs: {LIBRARIES[library]}',
      flush=True,
    )
    yield {
      'group': 'compare',
      'name': name,
      'peer': library,
      **descriptions,
      **milliseconds('ms', [times['maml_jax'] for times in rounds]),
      **milliseconds('peer_ms', [times[library] for times in rounds]),
      **median_and_range('ratio', ratios),
      'differs': LIBRARIES[library],
      'peer_huge_pages': huge_pages,
      'repeats': count,
    }


def make_parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  for library in LIBRARIES:
    add(f'--{library}', metavar='DIR', help='a checkout of this library')
  add('--python', default=sys.executable, help='an interpreter with PyTorch')
  add('--workloads', nargs='+', default=list(COMPARED), choices=COMPARED)
  add('--pairs', type=int, default=7, help='number of rounds; default 7')
  add('--precision', default='float32', choices=['float32', 'tf32'])
  add(
    '--huge_pages',
    action='store_true',
    help='enable huge pages for the other libraries, too',
  )
  add('--json', metavar='FILE', help='append JSON lines to this file')
  return parser


def main(argv=None) -> int:
  parser = make_parser()
  args = parser.parse_args(argv)
  checkouts = {
    library: os.path.abspath(getattr(args, library))
    for library in LIBRARIES
    if getattr(args, library)
  }
  if not checkouts:
    parser.error('give --pytorch_maml, --learn2learn or both')
  if args.pairs < 1:
    parser.error(f'--pairs={args.pairs}: must be at least 1')
  num_rows = 0
  for name in args.workloads:
    options = [name, args.precision]
    commands = {'maml_jax': [sys.executable, 'maml_jax', *options]} | {
      library: [args.python, library, *options, checkout]
      for library, checkout in checkouts.items()
    }
    for row in compare_workload(name, commands, args.pairs, args.huge_pages):
      num_rows += 1
      if args.json:
        with open(args.json, 'a') as f:
          f.write(json.dumps(row) + '\n')
  return 0 if num_rows == len(checkouts) * len(args.workloads) else 1


if __name__ == '__main__':
  try:
    sys.exit(main())
  except UserError as error:
    sys.exit(f'error: {error}')
  except KeyboardInterrupt:
    sys.exit(130)
