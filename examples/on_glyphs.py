"""Trains and measures any `Model`, as main.py does with its own.

The preset says which tasks; what is learned is what the caller brings. The
examples beside this file use it, and so can a model of yours.
"""

import pathlib

import jax
import optax

from maml_jax import config as config_lib
from maml_jax.evaluation.evaluate import make_evaluator
from maml_jax.evaluation.statistics import summarize
from maml_jax.experiment import setup
from maml_jax.experiment.task_source import eval_tasks, train_tasks
from maml_jax.learner import InnerConfig, make_learner
from maml_jax.train import init_state, make_train_step

PRESET = pathlib.Path(__file__).parent.parent / 'configs' / 'glyphs_5w1s.py'


def learn(model, steps, num_tasks=200):
  """Meta-trains a model on one kind of characters, measures it on another.

  Args:
    model: a `Model` of images [N, 28, 28, 1] and 5 ways.
    steps: meta-iterations.
    num_tasks: test tasks.

  Returns:
    The state after training, and {start: (accuracy, 95 % interval)} in [0, 1]
    on test tasks, from the random start and from the learned one.
  """
  config = config_lib.load(str(PRESET))
  setup.configure_jax(config)  # a device per core
  machine = setup.eval_sharding(config)
  learner = make_learner(model, InnerConfig(num_steps=1, encoder_lr=0.1))

  tx, tasks = optax.adam(1e-3), train_tasks(config, machine)
  run = make_train_step(
    learner,
    tx,
    tasks.sample,
    key=jax.random.key(1),
    meta_batch_size=config.train.meta_batch_size,
    max_steps=steps,
    mesh=machine.mesh,
    tasks_per_chunk=machine.tasks_per_chunk,
  )
  random = machine.replicate(init_state(learner, tx, jax.random.key(0)))
  learned, _ = run(jax.tree.map(lambda x: x + 0, random), tasks.shared, steps)

  phase = setup.eval_phase(config)
  learner = make_learner(model, InnerConfig(num_steps=3, encoder_lr=0.1))
  tests = eval_tasks(config, phase, num_tasks, machine)
  measure = make_evaluator(learner, tests, machine)
  result = {}
  for name, state in ('random', random), ('learned', learned):
    metrics = summarize(measure(state.params, state.stats))
    result[name] = metrics['accuracy'], metrics['interval']
    accuracy = '{:.1%} ± {:.1%}'.format(*result[name])
    print(f'{name:8} start: accuracy {accuracy} on scripts never seen')
  return learned, result
