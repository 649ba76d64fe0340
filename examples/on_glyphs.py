"""Meta-trains and evaluates any `Model` with the tasks and tools of main.py.

This is a module, not a program: `linen_network.py` and `nnx_network.py` call
`train_and_evaluate`. It shows how to combine your own model with what main.py
uses: a preset, its data set, the train step, and the evaluator, on all devices.
"""

import pathlib

import jax
import jax.numpy as jnp
import optax

from maml_jax import config as config_lib
from maml_jax.evaluation.runner import make_evaluator
from maml_jax.evaluation.statistics import summarize
from maml_jax.experiment import setup
from maml_jax.experiment.task_source import eval_tasks, train_tasks
from maml_jax.learner import InnerConfig, make_learner
from maml_jax.train_step import init_state, make_train_step

PRESET = pathlib.Path(__file__).parent.parent / 'configs' / 'glyphs_5w1s.py'


def train_and_evaluate(model, steps, num_tasks=200):
  """Meta-trains a model on some scripts and evaluates it on others.

  The tasks are 5-way 1-shot. Training uses Latin, Cyrillic and symbols;
  evaluation uses Georgian and Armenian, before and after training.

  Args:
    model: a `Model` with inputs [N, 28, 28, 1] and outputs [N, 5].
    steps: number of meta-iterations.
    num_tasks: number of test tasks.

  Returns:
    The state after training, and a dict with keys 'random' and 'learned', the
    initializations: (accuracy, half the width of its 95 % confidence interval),
    both in [0, 1].
  """
  config = config_lib.load(str(PRESET))
  setup.configure_jax(config)  # call it before JAX is used
  sharding = setup.eval_sharding(config)

  # Meta-training, with one inner step.
  learner = make_learner(model, InnerConfig(num_steps=1, encoder_lr=0.1))
  tx = optax.adam(1e-3)
  tasks = train_tasks(config, sharding)
  train_step = make_train_step(
    learner,
    tx,
    tasks.sample_episode,
    key=jax.random.key(1),
    meta_batch_size=config.train.meta_batch_size,
    max_steps=steps,
    mesh=sharding.mesh,
    tasks_per_chunk=sharding.tasks_per_chunk,
  )
  initial = sharding.replicate(init_state(learner, tx, jax.random.key(0)))
  # The train step donates its argument, hence the copy.
  learned, _ = train_step(jax.tree.map(jnp.copy, initial), tasks.shared, steps)

  # Evaluation, with three inner steps.
  learner = make_learner(model, InnerConfig(num_steps=3, encoder_lr=0.1))
  tasks = eval_tasks(config, setup.eval_phase(config), num_tasks, sharding)
  evaluate = make_evaluator(learner, tasks, sharding)
  result = {}
  for name, state in ('random', initial), ('learned', learned):
    metrics = summarize(evaluate(state.params, state.stats))
    result[name] = metrics['accuracy'], metrics['interval']
    accuracy = '{:.1%} ± {:.1%}'.format(*result[name])
    print(f'{name} initialization: accuracy {accuracy} on new scripts')
  return learned, result
