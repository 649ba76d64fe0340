"""Times pre-training in maml_jax and in eager PyTorch in turn.

  python -m benchmarks.pretraining [--python PYTHON]

PYTHON is an interpreter with PyTorch; default this one. An iteration trains
ConvNet4 with 64 filters and a cosine head of 64 classes, as preset
mini_pretrain: 128 images of 84 x 84 pixels, SGD with momentum. Batch norm uses
32 images at a time in maml_jax, and all of them in PyTorch. The images are
fixed; they are neither drawn nor augmented.
"""

import argparse
import json
import statistics
import sys

from benchmarks.timing import median_and_range
from maml_jax.utils.errors import UserError

IMAGES, PARTS, CLASSES, SIDE = 128, 4, 64, 84
MOMENTUM, WEIGHT_DECAY, RATE, SMOOTHING, SCALE = 0.9, 5e-4, 0.05, 0.1, 10.0


def random_batch():
  """Returns images [N, SIDE, SIDE, 3] float32 in 0..1, and labels [N]."""
  import numpy as np

  r = np.random.RandomState(0)
  images = r.rand(IMAGES, SIDE, SIDE, 3).astype(np.float32)
  return images, r.randint(0, CLASSES, IMAGES)


def jax_iteration(precision: str):
  """Returns a function that runs one iteration as `main.py` does."""
  import jax
  import jax.numpy as jnp

  from benchmarks import with_jax
  from maml_jax import config as config_lib
  from maml_jax.experiment import setup
  from maml_jax.experiment.pretraining import pretraining_learner
  from maml_jax.sharding import default_tasks_per_chunk, one_device_per_core
  from maml_jax.train_step import init_state, make_train_step
  from maml_jax.types import Batch, Episode

  one_device_per_core(PARTS)
  config = config_lib.load_preset('mini_pretrain')
  config.precision = precision
  learner = pretraining_learner(config, CLASSES)
  tx, mesh = setup.make_outer_optimizer(config), with_jax.fitting_mesh(PARTS)
  size = IMAGES // PARTS
  images, labels = random_batch()
  batches = jax.tree.map(
    lambda x: x.reshape(PARTS, size, *x.shape[1:]), (images, labels)
  )
  shared = with_jax.replicate(batches, mesh)

  def sample_episode(key, shared):
    part = jax.random.randint(key, (), 0, PARTS)
    batch = jax.tree.map(lambda x: jnp.take(x, part, axis=0), shared)
    return Episode((), Batch(*batch))

  with setup.matmul_precision(config):
    step = make_train_step(
      learner,
      tx,
      sample_episode,
      key=jax.random.key(1),
      meta_batch_size=PARTS,
      max_steps=1,
      mesh=mesh,
      tasks_per_chunk=default_tasks_per_chunk(mesh),
    )
    state = init_state(learner, tx, jax.random.key(0))
    step = step.lower(with_jax.replicate(state, mesh), shared, 1).compile()
  kept = [with_jax.replicate(state, mesh)]

  def run():
    kept[0], metrics = step(kept[0], shared, 1)
    jax.block_until_ready((kept[0], metrics))

  return run


def torch_iteration(precision: str):
  """Returns a function that runs one iteration of the same network."""
  import torch
  import torch.nn.functional as F
  from torch import nn

  from benchmarks import with_torch

  with_torch.set_precision(precision)

  class Network(nn.Module):
    def __init__(self):
      super().__init__()
      layers, channels = [], 3
      for _ in range(4):
        layers += [
          nn.Conv2d(channels, 64, 3, padding=1),
          nn.BatchNorm2d(64),
          nn.ReLU(),
          nn.MaxPool2d(2),
        ]
        channels = 64
      self.encoder = nn.Sequential(*layers, nn.Flatten())
      self.head = nn.Parameter(torch.randn(CLASSES, 64 * 25) / 40)

    def forward(self, x):
      features = F.normalize(self.encoder(x))
      return SCALE * features @ F.normalize(self.head).T

  images, labels = random_batch()
  device = with_torch.device()
  images = torch.tensor(images.transpose(0, 3, 1, 2).copy(), device=device)
  labels = torch.tensor(labels, device=device)
  network = Network().to(device)
  optimizer = torch.optim.SGD(
    network.parameters(), RATE, MOMENTUM, weight_decay=WEIGHT_DECAY
  )

  def run():
    logits = network(images)
    loss = F.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with_torch.synchronize()

  return run


def main(argv=None) -> int:
  """Times both in turn and prints images a second."""
  from benchmarks.compare import start_workers, time_rounds

  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add('--python', default=sys.executable, help='an interpreter with PyTorch')
  add('--pairs', type=int, default=7, help='number of rounds; default 7')
  add('--precision', default='float32', choices=['float32', 'tf32'])
  args = parser.parse_args(argv)
  interpreters = {'maml_jax': sys.executable, 'pytorch': args.python}
  commands = {
    name: [python, name, 'pretrain', args.precision]
    for name, python in interpreters.items()
  }
  workers, description = start_workers(commands, huge_pages=False)
  try:
    rounds = time_rounds(workers, args.pairs)
  finally:
    for worker in workers.values():
      worker.close()
  row = dict(description)
  for name in workers:
    rates = [IMAGES / times[name] for times in rounds]
    row |= median_and_range(f'{name}_images_per_second', rates)
  if 'pytorch' in workers:
    ratios = [times['pytorch'] / times['maml_jax'] for times in rounds]
    row['ratio'] = statistics.median(ratios)
    row |= {'ratio_min': min(ratios), 'ratio_max': max(ratios)}
  print(json.dumps(row))
  return 0 if len(workers) == 2 else 1


if __name__ == '__main__':
  try:
    sys.exit(main())
  except UserError as error:
    sys.exit(f'error: {error}')
  except KeyboardInterrupt:
    sys.exit(130)
