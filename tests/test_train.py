"""The program of meta-training and the loop around it."""

import json
import re
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from maml_jax.data.episodes import sample_episode, task_keys
from maml_jax.experiment import checkpoint, metrics_log, run_dir, setup
from maml_jax.sharding import DeviceLayout, make_mesh, mean_over_tasks
from maml_jax.train import (
  CallLengthController,
  init_state,
  make_train_step,
  train,
)
from maml_jax.utils import signals
from maml_jax.utils.errors import UserError


@pytest.fixture
def small(monkeypatch, tmp_path_factory):
  small_run.use(monkeypatch, tmp_path_factory.getbasetemp() / 'cache')


def sampler(config):
  phase = setup.train_phase(config)
  transform = setup.phase_transform(config, phase)
  return partial(sample_episode, **phase.shape, transform=transform)


def step_and_state(config, *, mesh=None, chunk=None, learner=None, parts=1):
  """The step of a config, its first state and its data set."""
  learner = learner or setup.phase_learner(config, setup.train_phase(config))
  tx = setup.make_outer_optimizer(config)
  step = make_train_step(
    learner,
    tx,
    sampler(config),
    key=jax.random.key(1),
    meta_batch_size=config.train.meta_batch_size,
    max_steps=config.train.steps_per_call,
    mesh=mesh,
    tasks_per_chunk=chunk,
    query_splits=parts,
  )
  state = init_state(learner, tx, jax.random.key(2))
  return step, state, small_run.on_device(small_run.dataset())


def run(config, lengths, **kwargs):
  """The state after calls of these lengths, and all metrics."""
  step, state, dataset = step_and_state(config, **kwargs)
  rows = []
  for n in lengths:
    state, values = step(state, dataset, n)
    rows.append({name: x[:n] for name, x in values.items()})
  return state, jax.tree.map(lambda *x: np.concatenate(x), *rows)


def assert_close(a, b, tolerance=1e-5):
  jax.tree.map(
    partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), a, b
  )


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('first_order', [False, True])
def test_jitted_equals_op_by_op(first_order):
  config = small_run.config(
    inner__first_order=first_order, train__meta_batch_size=2
  )
  jitted = run(config, [2], chunk=1)
  with jax.disable_jit():
    eager = run(config, [2], chunk=1)
  assert_close(jitted, eager)


def test_devices_and_chunks_change_nothing():
  config = small_run.config(model__norm='global', train__meta_batch_size=16)
  expected = run(config, [2])
  assert expected[1]['finite'].all()
  assert_close(run(config, [2], mesh=make_mesh(), chunk=1), expected)
  one = make_mesh(jax.devices()[:1])
  assert_close(run(config, [2], mesh=one, chunk=4), expected)


def test_devices_that_share_a_query_set_change_nothing(small):
  config = small_run.config(model__norm='global', train__meta_batch_size=4)
  expected = run(config, [2])
  assert_close(run(config, [2], mesh=make_mesh(), chunk=1, parts=2), expected)


@pytest.mark.parametrize('devices, chunk', [(1, 1), (8, 1), (8, None)])
def test_devices_and_chunks_draw_the_same_episodes(devices, chunk):
  config = small_run.config(data__augment_support='flip')
  draw, dataset = sampler(config), small_run.on_device(small_run.dataset())

  def drawn(mesh, chunk):
    over_tasks = mean_over_tasks(
      lambda dataset, key: ((), draw(key, dataset)), mesh, chunk
    )
    return jax.jit(over_tasks)(dataset, task_keys(jax.random.key(0), 7, 16))[1]

  mesh = make_mesh(jax.devices()[:devices])
  assert_equal(drawn(mesh, chunk), drawn(None, None))


def test_calls_of_any_length_end_in_the_same_bits():
  kwargs = {'mesh': make_mesh(), 'chunk': 1}
  config = small_run.config(train__steps_per_call=6, outer__optimizer='adam')
  assert_equal(run(config, [1, 3, 2], **kwargs), run(config, [6], **kwargs))


def test_state_keeps_types_and_placement(small):
  machine = setup.eval_sharding(small_run.config())
  step, state, dataset = step_and_state(
    small_run.config(), mesh=machine.mesh, tasks_per_chunk=machine.tasks_per_chunk
  )
  state = machine.replicate(state)
  before = jax.tree.map(lambda x: (x.aval, x.sharding), state)
  after, _ = step(state, machine.replicate(dataset), 1)
  assert jax.tree.map(lambda x: (x.aval, x.sharding), after) == before


def test_flags_a_gradient_that_is_not_finite_though_it_is_clipped(small):
  config = small_run.config(outer__clip_value=1.0)
  phase = setup.train_phase(config)
  learner = setup.phase_learner(config, phase)

  @jax.custom_vjp
  def steep(x):
    return x

  steep.defvjp(lambda x: (x, None), lambda _, g: (g * jnp.inf,))

  def loss(params, stats, episode):
    value, aux = learner.loss(params, stats, episode)
    return steep(value), aux

  state, rows = run(config, [1], learner=learner._replace(loss=loss))
  assert not rows['finite'].any()


def records(path, split):
  return [r for r in metrics_log.read_records(path) if r['split'] == split]


def test_trains_validates_and_keeps_the_best(small, tmp_path, capsys):
  config = small_run.config()
  assert train(config, tmp_path) == 0
  val = records(tmp_path, 'val')
  assert [r['step'] for r in val] == [5, 10]
  assert [r['step'] for r in records(tmp_path, 'train')] == [3, 5, 6, 9, 10]
  assert checkpoint.load(tmp_path, 'latest').step == 10
  best = max(val, key=lambda r: r['accuracy'])
  saved = checkpoint.load(tmp_path)
  assert saved.step == best['step']
  assert saved.metrics['accuracy'] == best['accuracy']
  assert saved.config == config
  assert list((tmp_path / 'tensorboard').iterdir())
  first, *epochs, done, where = capsys.readouterr().out.splitlines()
  assert '8 tasks a step on 8 x cpu, images on the device; from step 0' in first
  assert [line.split(',')[0] for line in epochs] == ['epoch 1/2', 'epoch 2/2']
  for line in (*epochs, done):
    assert '(transductive, 2 queries per class): loss' in line
  assert 'trained to step 10' in done and str(tmp_path) in where


@pytest.mark.parametrize(
  'overrides, words',
  [
    ({}, 'on 8 x cpu,'),
    (
      {'train__meta_batch_size': 6},
      'on 6 of 8 x cpu (--train.meta_batch_size=8 would use all),',
    ),
    (
      {'train__meta_batch_size': 12},
      'on 6 of 8 x cpu (--train.meta_batch_size=8 or 16 would use all),',
    ),
    (
      {'train__meta_batch_size': 4, 'model__norm': 'support'},
      'on 8 x cpu, 2 for each task,',
    ),
  ],
)
def test_uses_and_names_the_devices_that_fit(
  small, tmp_path, capsys, overrides, words
):
  config = small_run.config(**{'train__num_epochs': 0} | overrides)
  assert train(config, tmp_path) == 0
  assert words in capsys.readouterr().out


def test_goes_on_with_other_devices(small, tmp_path, monkeypatch):
  """From eight to one, and from one to eight."""
  paths = [tmp_path / name for name in ('8', '8 1', '1 8')]
  for path, order in zip(paths, ((8, 8), (8, 1), (1, 8)), strict=True):
    for epochs, devices in enumerate(order, 1):
      monkeypatch.setattr(
        'maml_jax.experiment.best_layout',
        lambda *_, n=devices, **__: DeviceLayout(n, 1),
      )
      assert train(small_run.config(train__num_epochs=epochs), path) == 0
  expected, *others = (checkpoint.load(path, 'latest') for path in paths)
  for other in others:
    assert_close(other[2:6], expected[2:6])


def test_goes_on_where_it_was_and_leaves_a_finished_run_alone(small, tmp_path):
  straight, parts = tmp_path / 'straight', tmp_path / 'parts'
  train(small_run.config(), straight)
  train(small_run.config(train__num_epochs=1), parts)
  for _ in range(2):
    assert train(small_run.config(), parts) == 0
    a, b = (checkpoint.load(path, 'latest') for path in (straight, parts))
    assert_equal(a.params, b.params)
    assert_equal(a.opt_state, b.opt_state)
    rows = [metrics_log.read_records(path) for path in (straight, parts)]
    for row in rows[0] + rows[1]:
      del row['seconds']
    assert rows[0] == rows[1]


def test_refuses_another_config_and_names_what_differs(small, tmp_path):
  train(small_run.config(train__num_epochs=1), tmp_path)
  before = (tmp_path / 'config.json').read_text()
  with pytest.raises(UserError) as error:
    train(small_run.config(inner__num_steps=2, seed=3), tmp_path)
  assert 'inner.num_steps: 1 -> 2; seed: 0 -> 3' in str(error.value)
  assert (tmp_path / 'config.json').read_text() == before
  same_course = small_run.config(train__steps_per_call=7, eval__queries=1)
  assert train(same_course, tmp_path) == 0


def test_a_config_with_which_nothing_was_trained_binds_nobody(small, tmp_path):
  train(small_run.config(train__num_epochs=0), tmp_path)
  assert train(small_run.config(train__num_epochs=0, seed=3), tmp_path) == 0


def test_refuses_a_workdir_in_use_or_unusable(small, tmp_path):
  config = small_run.config(train__num_epochs=0)
  with run_dir.lock_run_dir(tmp_path, config):
    with pytest.raises(UserError, match='another process is training'):
      train(config, tmp_path)
  assert train(config, tmp_path) == 0
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='cannot write'):
    train(config, tmp_path / 'file' / 'run')


@pytest.mark.parametrize(
  'overrides, message',
  [
    ({'task__ways': 9}, '9 ways, but glyphs train has 8 classes'),
    ({'task__queries': 5}, '1 shots and 5 queries are 6 images'),
    ({'val__queries': 9}, 'glyphs val'),
    ({'train__tasks_per_chunk': 3}, '8 tasks do not divide .* in chunks of 3'),
  ],
)
def test_refuses_what_cannot_be_run(small, tmp_path, overrides, message):
  with pytest.raises(UserError, match=message):
    train(small_run.config(**overrides), tmp_path)


def test_stops_before_saving_what_is_not_finite(small, tmp_path, capsys):
  """The learning rate explodes in the second epoch."""
  config = small_run.config(
    outer__schedule='step',
    outer__milestones=1,
    outer__gamma=1e38,
    train__num_epochs=3,
    train__steps_per_epoch=4,
  )
  assert train(config, tmp_path) == 1
  message = capsys.readouterr().err
  bad = int(re.search(r'not finite between steps (\d) and \d;', message)[1])
  assert 4 <= bad < 8
  saved = checkpoint.load(tmp_path, 'latest')
  assert saved.step == 4
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(saved.params))
  assert max(r['step'] for r in metrics_log.read_records(tmp_path)) <= bad


def test_saves_within_long_epochs(small, tmp_path, monkeypatch):
  steps, save = [], checkpoint.CheckpointWriter.save

  def noted(self, state):
    steps.append(int(state.step))
    save(self, state)

  monkeypatch.setattr(checkpoint.CheckpointWriter, 'save', noted)
  monkeypatch.setattr(checkpoint, 'SECONDS_BETWEEN_SAVES', -1.0)
  train(small_run.config(train__num_epochs=1), tmp_path)
  assert steps[-1] == 5 and len(steps) > 1


def test_log_drops_what_lies_beyond_the_step_and_mutilated_lines(tmp_path):
  with metrics_log.MetricsLog(tmp_path, 0) as log:
    for step in (1, 2, 3):
      log.train({'loss': np.ones(2), 'accuracy': np.array([0.0, 1.0])}, 3.0)
      log.flush(step)
      log.write(step, 'val', {'accuracy': 0.5})
  with (tmp_path / metrics_log.METRICS_FILE).open('a') as file:
    file.write('{"step": 1, "spl')
  with metrics_log.MetricsLog(tmp_path, 2) as log:
    assert log.is_validated(2) and not log.is_validated(3)
    log.write(3, 'val', {'accuracy': 0.25})
  lines = (tmp_path / metrics_log.METRICS_FILE).read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  order = [(step, split) for step in (1, 2) for split in ('train', 'val')]
  assert [(r['step'], r['split']) for r in rows] == [*order, (3, 'val')]
  assert (rows[0]['loss'], rows[0]['accuracy']) == (1.0, 0.5)
  assert rows[0]['seconds'] == 3.0
  assert rows[-1]['accuracy'] == 0.25


def test_pace_fits_calls_to_the_time_they_take(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(time, 'monotonic', lambda: now[0])
  pace = CallLengthController()
  assert pace.length == 1
  now[0] += 60  # compiling
  assert pace.lap(1) == 60 and pace.length == 1
  now[0] += 0.5
  assert pace.lap(1) == 0.5 and pace.length == 4
  now[0] += 100  # validation
  pace.start()
  now[0] += 0.1
  pace.lap(4)
  assert pace.length == 80


def test_heeds_a_stop_after_the_call_that_runs(small, tmp_path, monkeypatch):
  class Stopped(signals.StopSignal):
    def __bool__(self):
      return bool(metrics_log.read_records(tmp_path))

    status = 143

  monkeypatch.setattr('maml_jax.train.Stop', Stopped)
  assert train(small_run.config(), tmp_path) == 143
  step = checkpoint.load(tmp_path, 'latest').step
  assert 0 < step < 10
