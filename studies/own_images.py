"""Measures how well checkpoints learn from a few photographs.

  python -m studies.own_images [--checkpoints DIR ...] [--json FILE]

Five test classes of mini-ImageNet are drawn 40 times, with 5 images of each to
learn from and 15 others to classify. `maml_jax.load(...).fit(...)` learns with
its default settings, so that images are classified independently of each other.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence

import numpy as np

import maml_jax
from maml_jax import data
from maml_jax.evaluation.statistics import mean_interval
from maml_jax.experiment.formatting import format_percent
from maml_jax.types import Dataset
from maml_jax.utils.files import write_text
from maml_jax.utils.progress import track

CHECKPOINTS = pathlib.Path(__file__).parent.parent / 'checkpoints'
WAYS, SHOTS, QUERIES = 5, 5, 15


def draw(
  dataset: Dataset, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws one set of photographs.

  Args:
    dataset: the test split.
    seed: of the draw.

  Returns:
    Support images [W * S, H, W, C], query images [W * Q, H, W, C], and the
    classes of both as rows of `Dataset.index`, [W].
  """
  r = np.random.RandomState(seed)
  classes = r.permutation(len(dataset.size))[:WAYS]
  rows = np.stack(
    [
      dataset.index[c][r.permutation(dataset.size[c])[: SHOTS + QUERIES]]
      for c in classes
    ]
  )
  support, query = rows[:, :SHOTS].ravel(), rows[:, SHOTS:].ravel()
  return dataset.images[support], dataset.images[query], classes


def measure(
  checkpoint: pathlib.Path, dataset: Dataset, seeds: Sequence[int]
) -> Iterator[float]:
  """Yields the accuracy of each draw."""
  learner = maml_jax.load(checkpoint)
  for seed in seeds:
    support, query, classes = draw(dataset, seed)
    classifier = learner.fit(support, np.repeat(classes, SHOTS))
    predicted = classifier.predict(query)
    yield float((predicted == np.repeat(classes, QUERIES)).mean())


def main(argv: Sequence[str]) -> int:
  """Measures each checkpoint and prints a table."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n', 1)[0])
  parser.add_argument('--checkpoints', nargs='+', type=pathlib.Path)
  parser.add_argument('--draws', type=int, default=40)
  parser.add_argument('--json', type=pathlib.Path)
  args = parser.parse_args(argv)
  checkpoints = args.checkpoints or sorted(
    path for path in CHECKPOINTS.iterdir() if not path.name.endswith('_run')
  )
  dataset = data.load_dataset('mini_imagenet', 'test')
  seeds, rows = range(args.draws), {}
  for checkpoint in checkpoints:
    values = list(
      track(measure(checkpoint, dataset, seeds), 'draws', checkpoint.name)
    )
    mean, interval = mean_interval(np.array(values))
    rows[checkpoint.name] = {'mean': mean, 'interval': interval, 'all': values}
    print(f'{checkpoint.name}: {format_percent(mean, interval)}', flush=True)
  if args.json:
    write_text(args.json, json.dumps({'seeds': list(seeds), **rows}, indent=1))
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
