"""The workloads in PyTorch-MAML, with its model and inner loop."""

import sys

import torch
import torch.nn.functional as F

from benchmarks.with_torch import device, episode_tensors, synchronize
from benchmarks.workload import Workload


def make_iteration(work: Workload, checkout: str):
  """Returns a function that runs one iteration and waits for its result.

  Args:
    work: the workload.
    checkout: the source tree of PyTorch-MAML.
  """
  sys.path.insert(0, checkout)
  import models  # found in the checkout

  encoder_args = {'bn_args': {'track_running_stats': False, 'n_episode': 4}}
  model = models.make(
    'convnet4', encoder_args, 'logistic', {'n_way': work.ways}
  ).to(device())
  inner_args = {
    'n_step': work.num_steps,
    'encoder_lr': 0.01,
    'classifier_lr': 0.01,
    'first_order': work.first_order,
    'frozen': ['bn'],
    'momentum': 0.0,
    'weight_decay': 0.0,
    'reset_classifier': False,
  }
  (x_shot, y_shot), (x_query, y_query) = episode_tensors(work)
  optimizer = torch.optim.Adam(model.parameters(), 1e-3)

  def run():
    train = not work.evaluation
    logits = model(x_shot, x_query, y_shot, inner_args, meta_train=train)
    loss = F.cross_entropy(logits.flatten(0, 1), y_query.flatten())
    if train:
      optimizer.zero_grad()
      loss.backward()
      for param in model.parameters():
        torch.nn.utils.clip_grad_value_(param, 10)
      optimizer.step()
    synchronize()

  return run
