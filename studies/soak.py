"""Does a run that is interrupted at random end in the same bits?

  python -m studies.soak
  python -m studies.soak --interruptions 20 --seeds 7

One run of `glyphs` is left alone. Others, one after another, are started as
users start them and interrupted again and again: killed as they start, killed
or told to stop as they train, validate or save, or killed and their newest
checkpoint damaged (a file of it truncated, changed in one bit or removed). Each
goes on until it is done; its checkpoints and validations must then be those of
the first, bit by bit. A seed decides what happens when; where in the program
that falls, the machine decides. Prints one JSON object; the exit status is 1 if
a run ended otherwise.
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

import jax
import numpy as np

import maml_jax
from maml_jax.experiment import checkpoint, metrics_log
from maml_jax.utils.errors import UserError

MAIN = pathlib.Path(__file__).parent.parent / 'main.py'
# Small, but with all that a run has: a learned state, an optimiser's, a best.
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
KINDS = {'start': 2, 'kill': 3, 'stop': 2, 'damage': 3}  # how often, relatively
PATIENCE = 1200  # seconds for a process to compile, or to end
LONGEST_DELAY = 0.4  # seconds between a sign of progress and an interruption


class Runs:
  """Starts processes that share data and compiled programs.

  Attributes:
    env: of the processes.
    seconds: that the last one took to show progress.
  """

  def __init__(self, folder: pathlib.Path, overrides=()):
    self.env = os.environ | {
      'MAML_JAX_DATA': str(folder / 'data'),
      'MAML_JAX_CACHE': str(folder / 'cache'),
    }
    fields = [f'--config.{field}={value}' for field, value in FIELDS.items()]
    self._words = [*fields, *overrides]
    self.seconds = 5.0

  def command(self, workdir: pathlib.Path, *overrides: str) -> list[str]:
    """What starts or goes on with a run."""
    words = [*self._words, *overrides]
    return [sys.executable, str(MAIN), f'--workdir={workdir}', *words]

  def start(self, workdir: pathlib.Path, *overrides: str) -> subprocess.Popen:
    """Starts or goes on with a run."""
    return subprocess.Popen(
      self.command(workdir, *overrides),
      env=self.env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )

  def finish(self, workdir: pathlib.Path, *overrides: str) -> str:
    """Runs to the end; returns what was printed."""
    process = self.start(workdir, *overrides)
    return end(process, 0)

  def interrupt(
    self, workdir: pathlib.Path, kind: str, rng: random.Random
  ) -> str | None:
    """Goes on with a run, and interrupts it.

    Args:
      workdir: of the run.
      kind: one of `KINDS`.
      rng: decides on the moment, and on the damage.

    Returns:
      What was done; None if the run came to its end before.
    """
    process = self.start(workdir)
    if kind == 'start':
      time.sleep(rng.uniform(0, self.seconds))
    else:
      start = time.monotonic()
      if not wait_for_progress(process, workdir):
        end(process, 0)
        return None
      self.seconds = time.monotonic() - start
      time.sleep(rng.uniform(0, LONGEST_DELAY))
    number = signal.SIGTERM if kind == 'stop' else signal.SIGKILL
    process.send_signal(number)
    end(process, 0, -number, 128 + number)
    if process.returncode == 0:
      return None
    return damage(workdir, rng) if kind == 'damage' else kind


def end(process: subprocess.Popen, *statuses: int) -> str:
  """Waits for the end of a process; returns what it printed."""
  try:
    output, _ = process.communicate(timeout=PATIENCE)
  except subprocess.TimeoutExpired:
    process.kill()
    raise
  if process.returncode not in statuses:
    raise RuntimeError(f'it ended with {process.returncode}: {output}')
  return output


def size_of_metrics(workdir: pathlib.Path) -> int:
  path = workdir / metrics_log.METRICS_FILE
  return path.stat().st_size if path.exists() else 0


def wait_for_progress(process: subprocess.Popen, workdir: pathlib.Path) -> bool:
  """Waits until a process has written metrics; false if it ends before."""
  size, deadline = size_of_metrics(workdir), time.monotonic() + PATIENCE
  while size_of_metrics(workdir) <= size:
    if process.poll() is not None:
      return False
    if time.monotonic() > deadline:
      process.kill()
      raise RuntimeError(f'no progress: {process.communicate()[0]}')
    time.sleep(0.01)
  return True


def damage(workdir: pathlib.Path, rng: random.Random) -> str:
  """Damages the newest of two checkpoints; returns what was done."""
  folder = workdir / 'checkpoints' / 'latest'
  steps = [int(p.name) for p in folder.glob('*') if p.name.isdecimal()]
  if len(steps) < 2:
    return 'kill'  # a run without any sound checkpoint would not go on
  newest = folder / str(max(steps))
  files = sorted(path for path in newest.rglob('*') if path.is_file())
  file, way = rng.choice(files), rng.choice(['truncate', 'flip', 'remove'])
  content = bytearray(file.read_bytes())
  if way == 'remove' or not content:
    file.unlink()
    return 'damage: remove'
  if way == 'truncate':
    del content[rng.randrange(len(content)) :]
  else:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
  file.write_bytes(content)
  return f'damage: {way}'


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
  """Says in what two finished runs differ: nothing, if all went well."""
  found = []
  for which in ('latest', 'best'):
    a, b = (checkpoint.load(path, which) for path in (one, other))
    same = jax.tree.map(np.array_equal, a[2:], b[2:])
    if not all(jax.tree.leaves(same)):
      found.append(f'{which} checkpoint')
  if validations(one) != validations(other):
    found.append('validations')
  records = [(r['step'], r['split']) for r in metrics_log.read_records(other)]
  if len(set(records)) != len(records):
    found.append('a step twice in the metrics')
  return found


def validations(workdir: pathlib.Path) -> list[tuple]:
  return [
    (r['step'], r['loss'], r['accuracy'], r['interval'])
    for r in metrics_log.read_records(workdir)
    if r['split'] == 'val'
  ]


def soak(
  runs: Runs,
  straight: pathlib.Path,
  folder: pathlib.Path,
  rng: random.Random,
  interruptions: int,
) -> tuple[collections.Counter, list[str]]:
  """Interrupts runs so many times, and lets them end.

  Args:
    runs: starts them.
    straight: the workdir of one that nobody interrupted.
    folder: of their workdirs; more than one if one is too short.
    rng: decides on what is done when.
    interruptions: how many.

  Returns:
    How often each thing was done; for each run that ended, in what it differs
    from the straight one: '' for nothing.
  """
  done, ends = collections.Counter(), []
  kinds = [kind for kind, n in KINDS.items() for _ in range(n)]
  while True:
    workdir = folder / f'run{len(ends)}'
    while done.total() < interruptions:
      what = runs.interrupt(workdir, rng.choice(kinds), rng)
      if not what:
        break
      done[what] += 1
    else:
      runs.finish(workdir)
    ends.append(', '.join(differences(straight, workdir)))
    if done.total() >= interruptions:
      return done, ends


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--interruptions', type=int, default=200, help='in all')
  add('--seeds', nargs='+', type=int, default=list(range(10)))
  add('--json', metavar='FILE', help='append the JSON line here')
  args, overrides = parser.parse_known_args(argv)
  start, done, ends = time.monotonic(), collections.Counter(), []
  with tempfile.TemporaryDirectory(prefix='soak-') as folder:
    folder = pathlib.Path(folder)
    runs, straight = Runs(folder, overrides), folder / 'straight'
    runs.finish(straight)
    for i, seed in enumerate(args.seeds):
      share = args.interruptions * (i + 1) // len(args.seeds) - done.total()
      workdirs = folder / f'seed{seed}'
      what, how = soak(runs, straight, workdirs, random.Random(seed), share)
      done, ends = done + what, ends + how
      print(f'seed {seed}: {dict(what)}; differences: {how}', flush=True)
  result = {
    'interruptions': done.total(),
    **dict(sorted(done.items())),
    'seeds': args.seeds,
    'runs': len(ends),
    'bit_equal': ends.count(''),
    'differences': sorted({*ends} - {''}),
    'seconds': round(time.monotonic() - start),
    'jax': jax.__version__,
    'version': maml_jax.__version__,
  }
  line = json.dumps(result)
  print(line)
  if args.json:
    with open(args.json, 'a') as file:
      file.write(line + '\n')
  return 0 if result['bit_equal'] == len(ends) else 1


if __name__ == '__main__':
  try:
    sys.exit(main(sys.argv[1:]))
  except UserError as error:
    sys.exit(f'error: {error}')
