"""Trains every method on glyphs: `make test-training`, not part of `make test`.

Each must reach 80 % on 5-way 1-shot tasks of unseen scripts, with one budget of
tasks and inner rates chosen on validation tasks; docs/methods.md has a table,
and the reasons of the methods that need only reach 65 %.
"""

import pytest

from maml_jax import config as config_lib
from maml_jax.evaluation.evaluate import evaluate
from maml_jax.experiment import setup
from maml_jax.methods import METHODS
from maml_jax.train import train

COMMON = {
  'data.name': 'glyphs',
  'task.queries': 5,
  'train.meta_batch_size': 16,
  'train.steps_per_epoch': 100,
  'train.num_epochs': 5,
  'val.num_tasks': 100,
  'val.queries': 5,
  'eval.num_tasks': 300,
  'eval.queries': 5,
  'eval.curve_tasks': 0,
}
# Inner rates, and what else a method needs in so few iterations.
FIELDS = {
  'anil': {'inner.classifier_lr': 0.4},
  'meta_sgd': {'inner.encoder_lr': 0.4, 'inner.classifier_lr': 0.4},
  **{
    name: {'inner.encoder_lr': 0.1, 'inner.classifier_lr': 0.1}
    for name in (
      'alfa',
      'imaml',
      'mamlpp',
      'meta_curvature',
      'proto_maml',
      'unicorn',
    )
  },
}
FIELDS['mamlpp']['outer.loss_epochs'] = 2
GOALS = {'cavia': 0.65, 'imaml': 0.65, 'reptile': 0.65}


@pytest.mark.parametrize('name', METHODS)
def test_method_learns_glyphs(name, tmp_path):
  fields = COMMON | FIELDS.get(name, {})
  flags = [f'--{field}={value}' for field, value in fields.items()]
  config = config_lib.load(name, flags)
  setup.configure_jax(config)
  assert train(config, tmp_path) == 0
  assert evaluate(config, tmp_path)['accuracy'] > GOALS.get(name, 0.80)
