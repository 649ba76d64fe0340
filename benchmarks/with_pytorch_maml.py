"""A timed iteration of PyTorch-MAML: its own model and inner loop, eager."""

import sys

import torch
import torch.nn.functional as F

from benchmarks.with_torch import device, tensors, wait
from benchmarks.workload import Workload


def iteration(work: Workload, checkout: str):
  """A function that runs one iteration and waits for its end."""
  sys.path.insert(0, checkout)
  import models

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
  (x_shot, y_shot), (x_query, y_query) = tensors(work)
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
    wait()

  return run
