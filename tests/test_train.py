"""Tests of `maml_jax.train`: the jitted step, and whole small runs."""

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
from maml_jax.experiment import (
  checkpoint,
  checkpoint_writer,
  metrics_log,
  run_dir,
  setup,
)
from maml_jax.sharding import DeviceLayout, make_mesh, map_tasks
from maml_jax.train import (
  CallLengthController,
  train,
)
from maml_jax.train_step import init_state, make_train_step
from maml_jax.utils import signals
from maml_jax.utils.errors import UserError


@pytest.fixture
def small(monkeypatch, tmp_path_factory):
  small_run.use(monkeypatch, tmp_path_factory.getbasetemp() / 'cache')


def episode_sampler(config):
  """Returns `sample_episode(key, dataset)` for the training tasks."""
  phase = setup.train_phase(config)
  transform = setup.phase_transform(config, phase)
  return partial(sample_episode, **phase.shape, transform=transform)


def make_step_and_state(config, *, learner=None, **kwargs):
  """Returns the jitted step of a config, its first state and a data set."""
  learner = learner or setup.phase_learner(config, setup.train_phase(config))
  tx = setup.make_outer_optimizer(config)
  step = make_train_step(
    learner,
    tx,
    episode_sampler(config),
    key=jax.random.key(1),
    meta_batch_size=config.train.meta_batch_size,
    max_steps=config.train.steps_per_call,
    **kwargs,
  )
  state = init_state(learner, tx, jax.random.key(2))
  return step, state, small_run.on_device(small_run.dataset())


def run(config, lengths, **kwargs):
  """Returns the state after calls of these lengths, and all metrics."""
  step, state, dataset = make_step_and_state(config, **kwargs)
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


@pytest.mark.slow
@pytest.mark.parametrize('gradient', ['exact', 'first_order'])
def test_jitted_step_equals_op_by_op(gradient):
  config = small_run.config(outer__gradient=gradient, train__meta_batch_size=2)
  jitted = run(config, [2], tasks_per_chunk=1)
  with jax.disable_jit():
    eager = run(config, [2], tasks_per_chunk=1)
  assert_close(jitted, eager)


@pytest.mark.slow
def test_results_do_not_depend_on_devices_and_chunks():
  config = small_run.config(model__norm='global', train__meta_batch_size=16)
  expected = run(config, [2])
  assert expected[1]['finite'].all()
  for devices, tasks_per_chunk in ((8, 1), (1, 4)):
    mesh = make_mesh(jax.devices()[:devices])
    results = run(config, [2], mesh=mesh, tasks_per_chunk=tasks_per_chunk)
    assert_close(results, expected)


def test_results_do_not_depend_on_splits_of_query_sets(small):
  config = small_run.config(model__norm='global', train__meta_batch_size=4)
  expected = run(config, [2])
  results = run(
    config, [2], mesh=make_mesh(), tasks_per_chunk=1, query_splits=2
  )
  assert_close(results, expected)


@pytest.mark.parametrize(
  'devices, tasks_per_chunk', [(1, 1), (8, 1), (8, None)]
)
def test_episodes_do_not_depend_on_devices_and_chunks(devices, tasks_per_chunk):
  config = small_run.config(data__augment_support='flip')
  sample = episode_sampler(config)
  dataset = small_run.on_device(small_run.dataset())
  keys = task_keys(jax.random.key(0), 7, 16)

  def draw(mesh, tasks_per_chunk):
    over_tasks = map_tasks(
      lambda dataset, key: sample(key, dataset), mesh, tasks_per_chunk
    )
    return jax.jit(over_tasks)(dataset, keys)

  mesh = make_mesh(jax.devices()[:devices])
  assert_equal(draw(mesh, tasks_per_chunk), draw(None, None))


@pytest.mark.slow
def test_results_are_bit_identical_for_any_call_length():
  kwargs = {'mesh': make_mesh(), 'tasks_per_chunk': 1}
  config = small_run.config(train__steps_per_call=6, outer__optimizer='adam')
  assert_equal(run(config, [1, 3, 2], **kwargs), run(config, [6], **kwargs))


def test_state_keeps_types_and_sharding(small):
  sharding = setup.eval_sharding(small_run.config())
  step, state, dataset = make_step_and_state(
    small_run.config(),
    mesh=sharding.mesh,
    tasks_per_chunk=sharding.tasks_per_chunk,
  )
  state = sharding.replicate(state)
  before = jax.tree.map(lambda x: (x.aval, x.sharding), state)
  after, _ = step(state, sharding.replicate(dataset), 1)
  assert jax.tree.map(lambda x: (x.aval, x.sharding), after) == before


def test_step_reports_nonfinite_gradient_despite_clipping(small):
  config = small_run.config(outer__clip_value=1.0)
  phase = setup.train_phase(config)
  learner = setup.phase_learner(config, phase)

  @jax.custom_vjp
  def with_infinite_gradient(x):
    return x

  with_infinite_gradient.defvjp(
    lambda x: (x, None), lambda _, g: (g * jnp.inf,)
  )

  def loss(*args):
    value, aux = learner.loss(*args)
    return with_infinite_gradient(value), aux

  state, rows = run(config, [1], learner=learner._replace(loss=loss))
  assert not rows['finite'].any()


def read_split(path, split):
  """Returns the records of a run for 'train' or 'val'."""
  return [r for r in metrics_log.read_records(path) if r['split'] == split]


def test_run_writes_metrics_and_best_checkpoint(small, tmp_path, capsys):
  config = small_run.config()
  assert train(config, tmp_path) == 0
  val = read_split(tmp_path, 'val')
  assert [r['step'] for r in val] == [5, 10]
  assert [r['step'] for r in read_split(tmp_path, 'train')] == [3, 5, 6, 9, 10]
  assert checkpoint.load(tmp_path, 'latest').step == 10
  best = max(val, key=lambda r: r['accuracy'])
  saved = checkpoint.load(tmp_path)
  assert saved.step == best['step']
  assert saved.metrics['accuracy'] == best['accuracy']
  assert saved.config == config
  assert list((tmp_path / 'tensorboard').iterdir())
  first, *epochs, done, where = capsys.readouterr().out.splitlines()
  assert '8 tasks per step on 8 x cpu, images on the device;' in first
  assert 'starting at step 0 of 10' in first
  assert [line.split(',')[0] for line in epochs] == ['epoch 1/2', 'epoch 2/2']
  for line in (*epochs, done):
    assert '(transductive, 2 queries per class): loss' in line
  assert 'trained to step 10' in done and str(tmp_path) in where


@pytest.mark.parametrize(
  'overrides, devices',
  [
    ({}, 'on 8 x cpu, images'),
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
      'on 8 x cpu, 2 per task,',
    ),
  ],
)
def test_first_line_describes_used_devices(
  small, tmp_path, capsys, overrides, devices
):
  config = small_run.config(**{'train__num_epochs': 0} | overrides)
  assert train(config, tmp_path) == 0
  assert devices in capsys.readouterr().out


@pytest.mark.slow
def test_resume_on_other_devices_gives_the_same_results(
  small, tmp_path, monkeypatch
):
  """Resumes on one device after eight, and on eight after one."""
  paths = [tmp_path / name for name in ('8', '8 1', '1 8')]
  for path, order in zip(paths, ((8, 8), (8, 1), (1, 8)), strict=True):
    for epochs, devices in enumerate(order, 1):
      monkeypatch.setattr(
        'maml_jax.experiment.setup.choose_layout',
        lambda *_, n=devices, **__: DeviceLayout(n, 1),
      )
      assert train(small_run.config(train__num_epochs=epochs), path) == 0
  expected, *others = (checkpoint.load(path, 'latest') for path in paths)
  for other in others:
    assert_close(other[2:6], expected[2:6])


# The loss changes between the two epochs of a small run.
ANNEALED = {
  'inner__num_steps': 2,
  'inner__learn_lr': 'tensor',
  'inner__per_step': 'lr',
  'inner__lr_bounds': '(0.0,0.101)',
  'outer__first_order_epochs': 1,
  'outer__loss_steps': 'all',
  'outer__loss_epochs': 1,
}


@pytest.mark.parametrize('fields', [{}, ANNEALED], ids=['maml', 'annealed'])
def test_resume_is_bit_exact_and_finished_run_is_unchanged(
  small, tmp_path, fields
):
  uninterrupted, resumed = tmp_path / 'uninterrupted', tmp_path / 'resumed'
  train(small_run.config(**fields), uninterrupted)
  train(small_run.config(train__num_epochs=1, **fields), resumed)
  for _ in range(2):
    assert train(small_run.config(**fields), resumed) == 0
    paths = uninterrupted, resumed
    a, b = (checkpoint.load(path, 'latest') for path in paths)
    assert_equal(a.params, b.params)
    assert_equal(a.opt_state, b.opt_state)
    records = [metrics_log.read_records(path) for path in paths]
    for record in records[0] + records[1]:
      record.pop('seconds', None)
    assert records[0] == records[1]


def test_learned_rates_are_logged_and_stay_within_bounds(
  small, tmp_path, capsys
):
  train(small_run.config(**ANNEALED), tmp_path)
  records = read_split(tmp_path, 'inner')
  assert [record['step'] for record in records] == [5, 10]
  last = records[-1]
  rates = checkpoint.load(tmp_path, 'latest').params['inner']['lr']
  rates = np.stack(jax.tree.leaves(rates))
  assert rates.shape[1] == 2
  assert last['lr_min'] == rates.min() and last['lr_max'] == rates.max()
  assert 0 <= last['lr_min'] < last['lr_max'] <= np.float32(0.101)
  line = f'inner lr {last["lr_min"]:.3g}..{last["lr_max"]:.3g}'
  assert line in capsys.readouterr().out


@pytest.mark.parametrize(
  'frozen, classifier_lr, num_steps',
  [('classifier', 0.1, 1), ('', 0.0, 1), ('', 0.1, 0)],
)
def test_zero_head_that_is_not_adapted_is_rejected(
  small, tmp_path, frozen, classifier_lr, num_steps
):
  config = small_run.config(
    inner__head='zero',
    inner__frozen=frozen,
    inner__classifier_lr=classifier_lr,
    inner__num_steps=num_steps,
  )
  with pytest.raises(UserError, match='the head would stay at zero'):
    train(config, tmp_path)


def test_other_config_is_rejected_with_its_differences(small, tmp_path):
  train(small_run.config(train__num_epochs=1), tmp_path)
  before = (tmp_path / 'config.json').read_text()
  with pytest.raises(UserError) as error:
    train(small_run.config(inner__num_steps=2, seed=3), tmp_path)
  assert 'inner.num_steps: 1 -> 2; seed: 0 -> 3' in str(error.value)
  assert (tmp_path / 'config.json').read_text() == before
  ignored = small_run.config(train__steps_per_call=7, eval__queries=1)
  assert train(ignored, tmp_path) == 0


def test_config_may_change_before_the_first_checkpoint(small, tmp_path):
  train(small_run.config(train__num_epochs=0), tmp_path)
  assert train(small_run.config(train__num_epochs=0, seed=3), tmp_path) == 0


def test_locked_or_unwritable_workdir_is_rejected(small, tmp_path):
  config = small_run.config(train__num_epochs=0)
  with run_dir.lock_run_dir(tmp_path, config):
    with pytest.raises(UserError, match='another process is training'):
      train(config, tmp_path)
  assert train(config, tmp_path) == 0
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='cannot write to'):
    train(config, tmp_path / 'file' / 'run')


@pytest.mark.parametrize(
  'overrides, message',
  [
    ({'task__ways': 9}, '9 ways, but glyphs train has 8 classes'),
    ({'task__queries': 5}, '1 shots and 5 queries are 6 images'),
    ({'val__queries': 9}, 'glyphs val'),
    (
      {'train__tasks_per_chunk': 3},
      '8 tasks cannot be divided .* in chunks of 3',
    ),
  ],
)
def test_invalid_config_is_rejected(small, tmp_path, overrides, message):
  with pytest.raises(UserError, match=message):
    train(small_run.config(**overrides), tmp_path)


def test_run_stops_before_saving_a_nonfinite_state(small, tmp_path, capsys):
  """The learning rate overflows in the second epoch."""
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


@pytest.mark.slow
def test_run_that_diverges_at_once_has_no_checkpoint(small, tmp_path, capsys):
  """The learning rate overflows in the first epoch."""
  assert train(small_run.config(outer__lr=3e36), tmp_path) == 1
  assert re.fullmatch(
    r'stopped: loss or gradient is not finite between steps \d and \d; no '
    'checkpoint was saved yet\n',
    capsys.readouterr().err,
  )


def test_long_epochs_are_saved_before_they_end(small, tmp_path, monkeypatch):
  steps, save = [], checkpoint_writer.CheckpointWriter.save

  def record_and_save(self, state):
    steps.append(int(state.step))
    save(self, state)

  monkeypatch.setattr(
    checkpoint_writer.CheckpointWriter, 'save', record_and_save
  )
  monkeypatch.setattr(checkpoint_writer, 'SECONDS_BETWEEN_SAVES', -1.0)
  train(small_run.config(train__num_epochs=1), tmp_path)
  assert steps[-1] == 5 and len(steps) > 1


def test_log_drops_later_records_and_truncated_lines(tmp_path):
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


def test_call_length_follows_call_duration(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(time, 'monotonic', lambda: now[0])
  controller = CallLengthController()
  assert controller.length == 1
  now[0] += 60  # compilation
  assert controller.lap(1) == 60 and controller.length == 1
  now[0] += 0.5
  assert controller.lap(1) == 0.5 and controller.length == 4
  now[0] += 100  # validation
  controller.start()
  now[0] += 0.1
  controller.lap(4)
  assert controller.length == 80


def test_run_stops_after_the_current_call(small, tmp_path, monkeypatch):
  class StopAfterFirstRecord(signals.StopSignal):
    def __bool__(self):
      return bool(metrics_log.read_records(tmp_path))

    status = 143

  monkeypatch.setattr('maml_jax.train.StopSignal', StopAfterFirstRecord)
  assert train(small_run.config(), tmp_path) == 143
  step = checkpoint.load(tmp_path, 'latest').step
  assert 0 < step < 10
