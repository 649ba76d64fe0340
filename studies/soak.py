"""Checks that runs interrupted at random moments end bit-identical.

  python -m studies.soak
  python -m studies.soak --interruptions 20 --seeds 7
  python -m studies.soak --mode=pretrain --train.objective=classes

One run of `glyphs` trains without interruption, as the reference. Other runs
are started with main.py and interrupted repeatedly: killed during start-up;
killed or sent SIGTERM while they train, validate or save; or killed and their
newest checkpoint damaged (a file truncated, one bit flipped, or a file
removed). Each is restarted until it is complete. Its checkpoints and validation
records must then be bit-identical to those of the reference.

A seed determines the kind and delay of each interruption; where in the program
it hits depends on the machine. Prints one JSON object. The exit status is 1 if
a run differs from the reference.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import jax
import numpy as np

import maml_jax
from maml_jax.experiment import checkpoint, metrics_log
from maml_jax.utils.errors import UserError

MAIN = pathlib.Path(__file__).parent.parent / 'main.py'
# A small run with statistics, optimizer state and a best checkpoint.
FIELDS = {
  'task.ways': 3,
  'task.queries': 2,
  'model.width': 4,
  'model.norm': 'global',
  'inner.encoder_lr': 0.1,
  'outer.optimizer': 'adam',
  'outer.lr': 0.003,
  'train.num_epochs': 40,
  'train.steps_per_epoch': 7,
  'train.meta_batch_size': 2,
  'train.steps_per_call': 3,
  'val.num_tasks': 10,
  'val.queries': 2,
}
# Kind of interruption -> relative frequency.
KINDS = {'start': 2, 'kill': 3, 'stop': 2, 'damage': 3}
TIMEOUT_SECONDS = 1200  # for a process to make progress, or to exit
MAX_DELAY_SECONDS = 0.4  # between observed progress and an interruption


class Runs:
  """Starts training processes that share data and compiled programs.

  Args:
    folder: where data and compiled programs are stored.
    overrides: additional command-line overrides of config fields.

  Attributes:
    env: environment variables of the processes.
    seconds: how long the latest process took to make progress.
  """

  def __init__(self, folder: pathlib.Path, overrides: Sequence[str] = ()):
    self.env = os.environ | {
      'MAML_JAX_DATA': str(folder / 'data'),
      'MAML_JAX_CACHE': str(folder / 'cache'),
    }
    fields = [f'--config.{field}={value}' for field, value in FIELDS.items()]
    self._overrides = [*fields, *overrides]
    self.seconds = 5.0

  def command(self, workdir: pathlib.Path, *overrides: str) -> list[str]:
    """Returns the command that starts or resumes a run."""
    overrides = [*self._overrides, *overrides]
    return [sys.executable, str(MAIN), f'--workdir={workdir}', *overrides]

  def start(self, workdir: pathlib.Path, *overrides: str) -> subprocess.Popen:
    """Starts or resumes a run."""
    return subprocess.Popen(
      self.command(workdir, *overrides),
      env=self.env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def finish(self, workdir: pathlib.Path, *overrides: str) -> str:
    """Completes a run; returns its output."""
    process = self.start(workdir, *overrides)
    return wait_for_exit(process, 0)

  def interrupt(
    self, workdir: pathlib.Path, kind: str, rng: random.Random
  ) -> str | None:
    """Starts or resumes a run and interrupts it.

    Args:
      workdir: of the run.
      kind: one of `KINDS`.
      rng: determines the delay and the damage.

    Returns:
      A description of the interruption; None if the run completed before it.
    """
    process = self.start(workdir)
    if kind == 'start':
      time.sleep(rng.uniform(0, self.seconds))
    else:
      start = time.monotonic()
      if not wait_for_progress(process, workdir):
        wait_for_exit(process, 0)
        return None
      self.seconds = time.monotonic() - start
      time.sleep(rng.uniform(0, MAX_DELAY_SECONDS))
    number = signal.SIGTERM if kind == 'stop' else signal.SIGKILL
    process.send_signal(number)
    wait_for_exit(process, 0, -number, 128 + number)
    if process.returncode == 0:
      return None
    return damage_checkpoint(workdir, rng) if kind == 'damage' else kind


def wait_for_exit(process: subprocess.Popen, *statuses: int) -> str:
  """Waits for a process to exit; returns its output.

  Args:
    process: started by `Runs`.
    *statuses: the expected exit statuses.

  Raises:
    RuntimeError: it exited with another status.
  """
  try:
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
  except subprocess.TimeoutExpired:
    process.kill()
    raise
  if process.returncode not in statuses:
    raise RuntimeError(f'exited with status {process.returncode}: {output}')
  return output


def wait_for_progress(process: subprocess.Popen, workdir: pathlib.Path) -> bool:
  """Waits until a process writes metrics; returns False if it exits first.

  Raises:
    RuntimeError: the process makes no progress for `TIMEOUT_SECONDS`.
  """
  size = _metrics_size(workdir)
  deadline = time.monotonic() + TIMEOUT_SECONDS
  while _metrics_size(workdir) <= size:
    if process.poll() is not None:
      return False
    if time.monotonic() > deadline:
      process.kill()
      raise RuntimeError(f'no progress: {process.communicate()[0]}')
    time.sleep(0.01)
  return True


def _metrics_size(workdir: pathlib.Path) -> int:
  """Returns the size of the metrics file in bytes."""
  path = workdir / metrics_log.METRICS_FILE
  return path.stat().st_size if path.exists() else 0


def damage_checkpoint(workdir: pathlib.Path, rng: random.Random) -> str:
  """Damages the newest checkpoint if there are two.

  Returns:
    A description of the interruption.
  """
  folder = workdir / 'checkpoints' / 'latest'
  steps = [int(p.name) for p in folder.glob('*') if p.name.isdecimal()]
  if len(steps) < 2:
    return 'kill'  # a run without any valid checkpoint would not resume
  newest = folder / str(max(steps))
  files = sorted(path for path in newest.rglob('*') if path.is_file())
  file, how = rng.choice(files), rng.choice(['truncate', 'flip', 'remove'])
  content = bytearray(file.read_bytes())
  if how == 'remove' or not content:
    file.unlink()
    return 'damage: remove'
  if how == 'truncate':
    del content[rng.randrange(len(content)) :]
  else:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  file.write_bytes(content)
  return f'damage: {how}'


def differences(reference: pathlib.Path, workdir: pathlib.Path) -> list[str]:
  """Returns how a completed run differs from the reference; [] if it does not.

  Compares checkpoints and validation records, and checks that no step appears
  twice in the metrics.
  """
  found = []
  for which in ('latest', 'best'):
    a, b = (checkpoint.load(path, which) for path in (reference, workdir))
    equal = jax.tree.map(np.array_equal, a[2:], b[2:])
    if not all(jax.tree.leaves(equal)):
      found.append(f'{which} checkpoint')
  if validations(reference) != validations(workdir):
    found.append('validations')
  records = [(r['step'], r['split']) for r in metrics_log.read_records(workdir)]
  if len(set(records)) != len(records):
    found.append('a step twice in the metrics')
  return found


def validations(workdir: pathlib.Path) -> list[tuple]:
  """Returns the validation records: (step, loss, accuracy, interval) each."""
  return [
    (r['step'], r['loss'], r['accuracy'], r['interval'])
    for r in metrics_log.read_records(workdir)
    if r['split'] == 'val'
  ]


def soak(
  runs: Runs,
  reference: pathlib.Path,
  folder: pathlib.Path,
  rng: random.Random,
  interruptions: int,
) -> tuple[collections.Counter, list[str]]:
  """Interrupts runs a given number of times and completes them.

  Args:
    runs: starts the processes.
    reference: the workdir of an uninterrupted run.
    folder: where workdirs are created; there are several if a run completes
      before the last interruption.
    rng: determines kind, delay and damage of each interruption.
    interruptions: number of interruptions in total.

  Returns:
    The number of interruptions by description; and for each run how it differs
    from the reference, '' if it does not.
  """
  counts, results = collections.Counter(), []
  kinds = [kind for kind, n in KINDS.items() for _ in range(n)]
  while True:
    workdir = folder / f'run{len(results)}'
    while counts.total() < interruptions:
      description = runs.interrupt(workdir, rng.choice(kinds), rng)
      if not description:
        break
      counts[description] += 1
    else:
      runs.finish(workdir)
    results.append(', '.join(differences(reference, workdir)))
    if counts.total() >= interruptions:
      return counts, results


def main(argv: Sequence[str]) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--interruptions', type=int, default=200, help='in total; default 200')
  add(
    '--seeds',
    nargs='+',
    type=int,
    default=list(range(10)),
    help='the interruptions are split evenly over seeds; default 0..9',
  )
  add('--mode', default='train', help='of main.py; default train')
  add('--json', metavar='FILE', help='append the JSON line to this file')
  args, overrides = parser.parse_known_args(argv)
  overrides = [f'--mode={args.mode}', *overrides]
  start = time.monotonic()
  counts, results = _soak_seeds(args.seeds, args.interruptions, overrides)
  summary = {
    'interruptions': counts.total(),
    **dict(sorted(counts.items())),
    'seeds': args.seeds,
    'runs': len(results),
    'bit_equal': results.count(''),
    'differences': sorted({*results} - {''}),
    'seconds': round(time.monotonic() - start),
    'jax': jax.__version__,
    'version': maml_jax.__version__,
  }
  line = json.dumps(summary)
  print(line)
  if args.json:
    with open(args.json, 'a') as file:
      file.write(line + '\n')
  return 0 if summary['bit_equal'] == len(results) else 1


def _soak_seeds(
  seeds: Sequence[int], interruptions: int, overrides: Sequence[str]
) -> tuple[collections.Counter, list[str]]:
  """Returns the results of `soak`, with interruptions split over seeds."""
  counts, results = collections.Counter(), []
  with tempfile.TemporaryDirectory(prefix='soak-') as name:
    folder = pathlib.Path(name)
    runs, reference = Runs(folder, overrides), folder / 'reference'
    runs.finish(reference)
    for i, seed in enumerate(seeds):
      share = interruptions * (i + 1) // len(seeds) - counts.total()
      rng = random.Random(seed)
      more = soak(runs, reference, folder / f'seed{seed}', rng, share)
      print(f'seed {seed}: {dict(more[0])}; differences: {more[1]}', flush=True)
      counts, results = counts + more[0], results + more[1]
  return counts, results


if __name__ == '__main__':
  try:
    sys.exit(main(sys.argv[1:]))
  except UserError as error:
    sys.exit(f'error: {error}')
