"""Times maml_jax and its peers in turn, round by round.

  python -m benchmarks.compare [--pytorch_maml DIR] [--learn2learn DIR]
    [--python PYTHON]

DIR is a checkout of fmu2/PyTorch-MAML or of learnables/learn2learn; PYTHON an
interpreter that has PyTorch (for learn2learn also SciPy), where this one has
not. Each side lives in a process of its own and works only when told to, so
that all meet the same machine. The ratio of a round is time there by time here:
above 1, maml_jax is faster.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys

from benchmarks.measure import ROOT, milliseconds, spread
from benchmarks.workload import COMPARED
from maml_jax.utils import huge_pages
from maml_jax.utils.errors import UserError

# What a peer does otherwise on the same workload.
PEERS = {
  'pytorch_maml': 'nothing but the framework',
  'learn2learn': (
    'adapts batch norm too and keeps its running averages; one task after '
    'another; gradients are not clipped'
  ),
}


class Worker:
  """A process of `benchmarks.worker`."""

  def __init__(self, python: str, *args: str, use_huge_pages: bool):
    # Accelerator memory is shared by all sides.
    env = {'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.5'} | os.environ
    if use_huge_pages:
      env |= huge_pages.huge_pages_environment()
    self._process = subprocess.Popen(
      [python, '-m', 'benchmarks.worker', *args],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=ROOT,
      env=env,
    )

  def ready(self) -> dict:
    """Waits until it can run; returns what it runs on.

    Raises:
      UserError: it cannot.
    """
    about = json.loads(self._line())
    if 'error' in about:
      raise UserError(about['error'])
    return about

  def seconds(self) -> float:
    """The time of one iteration, measured over there."""
    self._process.stdin.write('go\n')
    self._process.stdin.flush()
    return float(self._line())

  def _line(self) -> str:
    line = self._process.stdout.readline()
    if not line:
      raise UserError(f'worker ended: {" ".join(self._process.args)}')
    return line

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


def start(commands: dict[str, list[str]], huge_pages: bool):
  """Starts a worker for every side.

  Args:
    commands: name -> interpreter and arguments.
    huge_pages: for the peers too; maml_jax takes them by itself.

  Returns:
    name -> worker, and what they run on. A peer that cannot run is left out,
    with a line that says why.

  Raises:
    UserError: maml_jax itself cannot run.
  """
  workers = {
    name: Worker(*command, use_huge_pages=huge_pages or name == 'maml_jax')
    for name, command in commands.items()
  }
  about = {}
  for name, worker in list(workers.items()):
    try:
      about |= worker.ready()
    except UserError as error:
      workers.pop(name).close()
      if name == 'maml_jax':
        raise
      print(f'  {name} left out: {error}', flush=True)
  return workers, about


def rounds(workers: dict[str, Worker], count: int) -> list[dict[str, float]]:
  """Seconds of every side, round by round; prints them."""
  for worker in workers.values():
    worker.seconds()
  done = []
  for i in range(count):
    # Who goes first changes, so that a drift of the machine favours nobody.
    order = list(workers)[:: 1 if i % 2 else -1]
    times = {name: workers[name].seconds() for name in order}
    done.append(times)
    here = times['maml_jax']
    parts = [f'maml_jax {here:7.3f} s']
    parts += [
      f'{name} {times[name]:7.3f} s = {times[name] / here:5.2f} x'
      for name in workers
      if name != 'maml_jax'
    ]
    print('  ' + '   '.join(parts), flush=True)
  return done


def compare(
  name: str, commands: dict[str, list[str]], count: int, huge_pages: bool
):
  """Yields a row for each peer."""
  print(name, flush=True)
  workers, about = start(commands, huge_pages)
  try:
    done = rounds(workers, count) if len(workers) > 1 else []
  finally:
    for worker in workers.values():
      worker.close()
  for peer in [name for name in workers if name != 'maml_jax']:
    ratios = [times[peer] / times['maml_jax'] for times in done]
    print(
      f'  {peer}: median ratio {statistics.median(ratios):.2f} '
      f'({min(ratios):.2f}..{max(ratios):.2f}); differs: {PEERS[peer]}',
      flush=True,
    )
    yield {
      'group': 'compare',
      'name': name,
      'peer': peer,
      **about,
      **milliseconds('ms', [times['maml_jax'] for times in done]),
      **milliseconds('peer_ms', [times[peer] for times in done]),
      **spread('ratio', ratios),
      'differs': PEERS[peer],
      'peer_huge_pages': huge_pages,
      'repeats': count,
    }


def main(argv=None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  for peer in PEERS:
    parser.add_argument(f'--{peer}', metavar='DIR')
  add = parser.add_argument
  add('--python', default=sys.executable)
  add('--workloads', nargs='+', default=list(COMPARED), choices=COMPARED)
  add('--pairs', type=int, default=7)
  add('--precision', default='float32', choices=['float32', 'tf32'])
  add('--huge_pages', action='store_true', help='give the peers those too')
  add('--json', metavar='FILE', help='append JSON lines here')
  args = parser.parse_args(argv)
  checkouts = {
    peer: os.path.abspath(getattr(args, peer))
    for peer in PEERS
    if getattr(args, peer)
  }
  if not checkouts:
    parser.error('nothing to compare with: give --pytorch_maml, --learn2learn')
  if args.pairs < 1:
    parser.error('--pairs must be at least 1')
  rows = 0
  for name in args.workloads:
    what = [name, args.precision]
    commands = {'maml_jax': [sys.executable, 'maml_jax', *what]} | {
      peer: [args.python, peer, *what, checkout]
      for peer, checkout in checkouts.items()
    }
    for row in compare(name, commands, args.pairs, args.huge_pages):
      rows += 1
      if args.json:
        with open(args.json, 'a') as f:
          f.write(json.dumps(row) + '\n')
  return 0 if rows == len(checkouts) * len(args.workloads) else 1


if __name__ == '__main__':
  try:
    sys.exit(main())
  except UserError as error:
    sys.exit(f'error: {error}')
  except KeyboardInterrupt:
    sys.exit(130)
