"""Traces a meta-iteration and an evaluation task of every preset."""

import functools
import pathlib
from functools import partial

import jax
import pytest

from maml_jax import config as config_lib
from maml_jax import data, train_step
from maml_jax.data.episodes import sample_episode
from maml_jax.experiment import setup
from maml_jax.inner_loop import param_labels
from maml_jax.learner import InnerConfig
from maml_jax.types import Dataset

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / 'configs'
PRESETS = sorted(
  path
  for path in CONFIGS.glob('[!_]*.py')
  if path.stem not in ('default', 'sinusoid')  # see test_sinusoid.py
)


def trace(config):
  """Traces a meta-iteration and an evaluation task; returns the params."""
  phase = setup.train_phase(config)
  learner = setup.phase_learner(config, phase)
  tx = setup.make_outer_optimizer(config)
  key = jax.random.key(0)
  image_shape = data.spec(config.data.name).image_shape
  dataset = Dataset(
    jax.ShapeDtypeStruct((900, *image_shape), 'uint8'),
    jax.ShapeDtypeStruct((30, 30), 'int32'),
    jax.ShapeDtypeStruct((30,), 'int32'),
  )

  def draw(phase, key, dataset):
    transform = setup.phase_transform(config, phase)
    return sample_episode(key, dataset, **phase.shape, transform=transform)

  def step(key, dataset):
    state = train_step.init_state(learner, tx, key)
    run = train_step.make_train_step(
      learner,
      tx,
      partial(draw, phase),
      key=key,
      meta_batch_size=config.train.meta_batch_size,
      max_steps=1,
      tasks_per_chunk=config.train.tasks_per_chunk or 1,
    )
    return state, *run(state, dataset, 1)

  before, after, metrics = jax.eval_shape(step, key, dataset)
  assert after == before
  assert metrics['accuracy'].shape == (1,)

  eval_phase = setup.eval_phase(config)
  eval_learner = setup.phase_learner(config, eval_phase)

  def one_task(key, dataset):
    params, stats = eval_learner.init(key)
    return eval_learner.loss(params, stats, draw(eval_phase, key, dataset))

  loss, (_, metrics) = jax.eval_shape(one_task, key, dataset)
  assert loss.shape == metrics['accuracy'].shape == ()
  return before.params


@pytest.mark.parametrize('path', PRESETS, ids=lambda path: path.stem)
def test_preset_can_be_traced(path):
  config = config_lib.load(str(path))
  config.data.name = first_with_same_shape(config.data.name)
  params = trace_once(config_lib.to_json(config))
  assert params.keys() - {'inner', 'context'} == {'encoder', 'classifier'}


@functools.cache
def trace_once(text):
  return trace(config_lib.from_json(text))


def first_with_same_shape(name):
  """Returns the first data set for which the programs are the same."""

  def properties(spec):
    return spec.image_shape, spec.mean is None

  wanted = properties(data.SPECS[name])
  return next(
    name for name, spec in data.SPECS.items() if properties(spec) == wanted
  )


@pytest.mark.parametrize(
  'override, frozen',
  [
    ('outer.gradient=first_order', {'bn'}),
    ('inner.frozen=encoder', {'bn', 'conv'}),
    ('inner.frozen=bn', {'bn'}),
    ('inner.frozen=', set()),
  ],
)
def test_overrides_in_training_md_can_be_traced(override, frozen):
  assert f'--{override}' in (REPOSITORY / 'docs' / 'training.md').read_text()
  path = CONFIGS / 'mini_5w1s.py'
  config = config_lib.load(str(path), [f'--config.{override}'])
  labels = param_labels(InnerConfig(**config.inner), trace(config))
  found = {
    path.split('/')[-2] for path, label in labels.items() if label == 'frozen'
  }
  assert found == frozen
