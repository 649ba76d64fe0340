"""Times maml_jax and a checkout of PyTorch-MAML in turn, pair by pair.

  python -m benchmarks.compare --pytorch_maml DIR [--python PYTHON]

DIR is a checkout of fmu2/PyTorch-MAML; PYTHON an interpreter that has PyTorch,
where this one has not. Each side lives in a process of its own and works only
when told to, so that both meet the same machine. The ratio of a pair is time
there by time here: above 1, maml_jax is faster.
"""

import argparse
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import time

from benchmarks.workload import WORKLOADS

HERE = pathlib.Path(__file__).resolve()


class Worker:
  """A process that runs one iteration whenever it reads a line."""

  def __init__(self, command):
    self._process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=HERE.parent.parent,
    )

  def seconds(self):
    """The time of one iteration, measured over there."""
    self._process.stdin.write('go\n')
    self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      raise SystemExit(f'worker ended: {" ".join(self._process.args)}')
    return float(line)

  def close(self):
    self._process.stdin.close()
    self._process.wait()


def serve(iteration):
  """The worker's side."""
  iteration()
  for _ in sys.stdin:
    start = time.perf_counter()
    iteration()
    print(time.perf_counter() - start, flush=True)


def compare(name, here, there, pairs):
  """Prints every pair and the median ratio; returns a record of them."""
  ours, theirs = Worker(here), Worker(there)
  ours.seconds(), theirs.seconds()
  rows = []
  for i in range(pairs):
    # Who goes first changes, so that a drift of the machine favours neither.
    order = (ours, theirs) if i % 2 else (theirs, ours)
    times = {worker: worker.seconds() for worker in order}
    rows.append((times[theirs], times[ours]))
    there_s, here_s = rows[-1]
    print(
        f'  {name:12s} PyTorch-MAML {there_s:7.3f} s   maml_jax {here_s:7.3f} s'
        f'   ratio {there_s / here_s:5.2f}',
        flush=True,
    )
  ours.close()
  theirs.close()
  ratios = [t / h for t, h in rows]
  record = {
      'workload': name,
      'pytorch_maml_s': statistics.median(t for t, _ in rows),
      'maml_jax_s': statistics.median(h for _, h in rows),
      'ratio': statistics.median(ratios),
      'ratio_range': [min(ratios), max(ratios)],
      'machine': platform.processor() or platform.machine(),
  }
  print(json.dumps(record), flush=True)
  return record


def make_iteration(worker, name, checkout):
  """The worker's iteration; each side imports its own framework alone."""
  if worker == 'jax':
    from benchmarks import with_jax

    return with_jax.iteration(WORKLOADS[name])
  from benchmarks import with_torch

  return with_torch.iteration(WORKLOADS[name], checkout)


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--pytorch_maml', required=True, metavar='DIR')
  parser.add_argument('--python', default=sys.executable)
  parser.add_argument('--workloads', nargs='+', default=list(WORKLOADS))
  parser.add_argument('--pairs', type=int, default=7)
  parser.add_argument('--json', metavar='FILE', help='append JSON lines here')
  parser.add_argument('--worker', choices=['jax', 'torch'], help='internal')
  args = parser.parse_args()
  checkout = str(pathlib.Path(args.pytorch_maml).resolve())
  if args.worker:
    return serve(make_iteration(args.worker, args.workloads[0], checkout))
  for name in args.workloads:
    tail = ['-m', 'benchmarks.compare', '--pytorch_maml', checkout]
    tail += ['--workloads', name, '--worker']
    record = compare(
        name,
        [sys.executable, *tail, 'jax'],
        [args.python, *tail, 'torch'],
        args.pairs,
    )
    if args.json:
      with open(args.json, 'a') as f:
        f.write(json.dumps(record) + '\n')


if __name__ == '__main__':
  main()
