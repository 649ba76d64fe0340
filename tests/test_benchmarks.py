"""The benchmarks: what they count, what they report, and what memory needs."""

import io
import json
import os
import pathlib
import shutil
import subprocess
import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks import (
  compare,
  flops,
  measure,
  profile,
  run,
  scaling,
  table,
  variants,
  with_jax,
  worker,
)
from benchmarks.workload import WORKLOADS, Workload, arrays
from maml_jax import config as config_lib
from maml_jax import ops
from maml_jax.experiment import setup
from maml_jax.models.convnet import ConvBlock
from maml_jax.models.norm import BatchNorm
from maml_jax.sharding import make_mesh, mean_over_tasks
from maml_jax.utils.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = ROOT / 'configs'
SCRIPT = ROOT / 'benchmarks' / 'gpu.sh'
ROWS = (
  'iteration/5w1s',
  'iteration/evaluation',
  'compile/iteration',
  'memory/5w1s K=5',
  'sampling/draw',
  'sampling/train loop',
  'flops',
  'scaling/8 tasks, 2 fake devices',
  'variants/patches',
  'profile',
)
PROFILE = {f'profile/{kind}' for kind in profile.KINDS}
OF_CPU = {'profile', 'variants'}


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  """Rows of every group, at tiny sizes, by 'group/name'."""
  path = tmp_path_factory.mktemp('benchmarks') / 'rows.jsonl'
  flags = ['--tiny', '--repeats=2', '--seconds=0', f'--json={path}']
  assert run.main([*flags, '--only', *ROWS]) == 0
  found = [json.loads(line) for line in path.read_text().splitlines()]
  return {f'{row["group"]}/{row["name"]}': row for row in found}


def test_every_group_gives_the_rows_that_were_asked_for(rows):
  assert set(rows) == {*ROWS, *PROFILE, 'flops/5w1s'} - {'flops', 'profile'}
  assert {row['group'] for row in rows.values()} == set(run.GROUPS)


def test_shares_of_a_profile_are_of_one_whole(rows):
  found = [rows[name] for name in sorted(PROFILE)]
  assert sum(row['share'] for row in found) == pytest.approx(1)
  assert rows['profile/convolutions']['ms'] > 0
  assert rows['profile/gradients of kernels']['calls'] > 0


@pytest.mark.parametrize(
  'name',
  [
    'maxima after scaling',
    'bias at every pixel',
    'patches',
    'kernel gradient by patches',
  ],
)
def test_variants_do_the_same_and_leave_no_trace(name):
  block = ConvBlock(8, BatchNorm, 'torch')
  image = jax.random.normal(jax.random.key(1), (4, 7, 7, 3))
  init = nn.init(ConvBlock.__call__, block)
  params = init(jax.random.key(0), image, train=True)

  @jax.grad
  def gradient(params, image):
    return jnp.square(block.apply(params, image, train=True) - 1.0).sum()

  def run(dtype=jnp.float32):
    """The program, and what it computes."""
    jax.clear_caches()
    args = params, image.astype(dtype)
    return jax.jit(gradient).lower(*args).as_text(), jax.jit(gradient)(*args)

  dtypes = jnp.float32, jnp.bfloat16
  shipped = [run(dtype) for dtype in dtypes]
  with variants.variants()[name]:
    program, other = run()
  assert program != shipped[0][0]
  close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
  jax.tree.map(close, other, shipped[0][1])
  for dtype, (program, gradients) in zip(dtypes, shipped, strict=True):
    again, values = run(dtype)
    assert again == program
    jax.tree.map(np.testing.assert_array_equal, values, gradients)


def test_every_row_says_on_what_it_was_measured(rows):
  for row in rows.values():
    assert row['device'] and row['processor'] and row['commit']
    assert row['platform'] in ('cpu', 'gpu', 'tpu') and row['cores'] >= 1
    assert row['jax'] == jax.__version__ and row['devices'] >= 1
    assert row['python'] == '.'.join(map(str, sys.version_info[:3]))
    assert row['precision'] == 'float32' and row['tiny'] is True


def test_a_median_lies_between_the_ends_of_its_range(rows):
  ranges = [
    (row[f'{name}_min'], row[name], row[f'{name}_max'])
    for row in rows.values()
    for name in row
    if f'{name}_min' in row
  ]
  assert len(ranges) >= len(rows)
  assert all(low <= median <= high for low, median, high in ranges)


def test_the_numbers_of_a_row_fit_together(rows):
  row = rows['iteration/5w1s']
  assert row['tasks_per_s'] == pytest.approx(2 / (row['ms'] / 1e3))
  assert row['used'] == min(2, row['devices']) and row['repeats'] == 2
  row = rows['memory/5w1s K=5']
  assert row['saved'] == pytest.approx(1 - row['mb_remat'] / row['mb'])
  row = rows['flops/5w1s']
  low, high = (row['gflop'] / row[f'ms_{end}'] * 1e3 for end in ('max', 'min'))
  assert row['gflops_min'] == pytest.approx(low)
  assert row['gflops_max'] == pytest.approx(high)
  assert 0 < row['share'] and row['matmul_gflops'] > 0
  row = rows['sampling/draw']
  assert row['alone_share'] == pytest.approx(row['alone_ms'] / row['ms_with'])
  assert row['share'] < 1
  row = rows['scaling/8 tasks, 2 fake devices']
  assert row['used'] == row['devices'] == 2 and row['platform'] == 'cpu'
  assert row['params'] == 3 * 3 * 3 * 4 + 4 + 4 * 2
  *_, line = scaling.table([row]).splitlines()
  cells = [cell.strip() for cell in line.strip('|').split('|')]
  assert cells[:4] == ['8 tasks, 2 fake devices', '120', cells[2], '2']
  per_gflop = row['ms'] / row['gflop']
  assert cells[-1] == f'{per_gflop:.2f} ms'


def test_compilation_is_measured_cold_and_in_parts(rows):
  row = rows['compile/iteration']
  assert row['repeats'] == 1
  for kind in ('cold', 'cached'):
    parts = row[f'{kind}_trace_s'] + row[f'{kind}_compile_s']
    assert 0 < row[f'{kind}_s'] == pytest.approx(parts)


def test_the_meta_iteration_fits_in_half_a_gigabyte():
  """Four tasks one after another, as on a CPU; remat takes a third of that."""
  work = WORKLOADS['5w1s']
  compiled, _ = with_jax.compiled(work)
  assert compiled.memory_analysis().temp_size_in_bytes < 500e6
  compiled, _ = with_jax.compiled(work._replace(remat=True))
  assert compiled.memory_analysis().temp_size_in_bytes < 250e6


@pytest.mark.parametrize(
  ('name', 'preset'),
  [('5w1s', 'mini_5w1s'), ('inductive', 'mini_5w1s_inductive')],
)
def test_workloads_are_those_of_the_configs(name, preset):
  config = config_lib.load(str(CONFIGS / f'{preset}.py'))
  work, inner = WORKLOADS[name], with_jax.inner_config(WORKLOADS[name])
  fields = vars(inner) | {'frozen': tuple(inner.frozen)}
  assert fields == dict(config.inner)
  assert config.model.norm == ('episodic' if work.inductive else 'batch')
  assert config.model.encoder == work.encoder
  assert (config.task.ways, config.task.queries) == (work.ways, work.queries)
  assert config.train.meta_batch_size == work.tasks
  params = {'w': jnp.linspace(-1.0, 1.0, 5)}
  grads = {'w': jnp.array([0.3, -20.0, 0.0, 1.0, 40.0])}
  txs = with_jax.optimizer_of(work), setup.make_outer_optimizer(config)
  updates = [tx.update(grads, tx.init(params), params)[0]['w'] for tx in txs]
  np.testing.assert_array_equal(*updates)


def test_arrays_have_the_stated_shapes():
  (x, y), (x_query, _) = arrays(Workload(shots=2))
  assert x.shape == (4, 10, 84, 84, 3) and x_query.shape == (4, 75, 84, 84, 3)
  assert y[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


# Counting operations. A convolution of N images to H x W x O, from C channels
# with a k x k kernel, takes 2 N H W O k k C of them.

IMAGE, KERNEL = jnp.zeros((2, 6, 5, 3)), jnp.zeros((3, 3, 3, 4))
CONV = 2 * (2 * 6 * 5 * 4) * (3 * 3 * 3)


def counted(fn, *args):
  return flops.count(jax.make_jaxpr(fn)(*args))


def test_a_matrix_product_counts_two_per_multiplication():
  a, b = jnp.zeros((7, 2, 3)), jnp.zeros((7, 3, 5))
  assert counted(jnp.matmul, a, b) == 2 * 7 * 2 * 3 * 5
  assert counted(lambda a: jnp.sin(a) + 1, a) == 0


def test_convolutions_count_what_their_definition_says():
  assert counted(ops.conv, IMAGE, KERNEL) == CONV
  strided = counted(lambda x, k: ops.conv(x, k, stride=2), IMAGE, KERNEL)
  assert strided == 2 * (2 * 3 * 3 * 4) * (3 * 3 * 3)
  of_jax = counted(
    lambda x, k: lax.conv_general_dilated(
      x, k, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    ),
    IMAGE,
    KERNEL,
  )
  assert of_jax == CONV
  grouped = counted(
    lambda x, k: lax.conv_general_dilated(
      x,
      k,
      (1, 1),
      'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=3,
    ),
    IMAGE,
    jnp.zeros((3, 3, 1, 6)),
  )
  assert grouped == 2 * (2 * 6 * 5 * 6) * (3 * 3 * 1)


def test_a_gradient_counts_one_convolution_per_operand():
  def loss(x, k):
    return (ops.conv(x, k) ** 2).sum()

  assert counted(jax.grad(loss, 0), IMAGE, KERNEL) == 2 * CONV
  assert counted(jax.grad(loss, 1), IMAGE, KERNEL) == 2 * CONV
  assert counted(jax.grad(loss, (0, 1)), IMAGE, KERNEL) == 3 * CONV
  linear = jax.grad(lambda x, k: ops.conv(x, k).sum(), 1)
  assert counted(linear, IMAGE, KERNEL) == CONV  # the result is not needed


def test_tasks_with_kernels_of_their_own_count_each():
  images, kernels = jnp.zeros((7, *IMAGE.shape)), jnp.zeros((7, *KERNEL.shape))
  assert counted(jax.vmap(ops.conv), images, kernels) == 7 * CONV

  def gradients(x, k):
    grad = jax.grad(lambda x, k: ops.conv(x, k).sum(), 1)
    return jax.vmap(grad)(x, k)

  assert counted(gradients, images, kernels) == 7 * CONV


def test_loops_and_branches_count_as_often_as_they_run():
  a = jnp.zeros((4, 4))

  def looped(a):
    step = jax.checkpoint(lambda c, _: (jnp.sin(c @ a), None))
    return lax.scan(step, a, length=5)[0]

  def branched(flag, a):
    return lax.cond(flag, lambda a: a @ a @ a, lambda a: a @ a, a)

  assert counted(jax.jit(looped), a) == 5 * 128
  assert counted(branched, True, a) == 2 * 128
  # Forward 5 products, 5 again in the backward pass, and 2 gradients each.
  assert counted(jax.grad(lambda a: looped(a).sum()), a) == (5 + 5 + 10) * 128
  with pytest.raises(ValueError, match='while loop is unknown'):
    counted(lambda a: lax.while_loop(lambda x: x[0, 0] > 0, looped, a), a)


def test_the_work_of_all_devices_counts():
  def one_task(k, x):
    return ops.conv(x, k).sum(), ()

  images = jnp.zeros((2, *IMAGE.shape))
  for mesh in (None, make_mesh(jax.devices()[:2])):
    over_tasks = mean_over_tasks(one_task, mesh, 1)
    assert counted(over_tasks, KERNEL, images) == 2 * CONV


@pytest.mark.parametrize('name', ['evaluation', 'first_order'])
def test_an_iteration_counts_what_its_layers_add_up_to(name):
  """At full size, by hand: ConvNet4 on 84, 42, 21 and 10 pixels, and a head."""
  work = WORKLOADS[name]
  first, *rest = (
    2 * side**2 * 32 * 9 * channels
    for side, channels in ((84, 3), (42, 32), (21, 32), (10, 32))
  )
  head = 2 * (5 * 5 * 32) * 5
  forward = first + sum(rest) + head
  # Backward: the gradients of kernels and inputs, but not of images.
  both = forward + first + 2 * (sum(rest) + head)
  support, query = 5 * work.num_steps, 5 * 15
  total = support * both + query * (forward if work.evaluation else both)
  fn, args = with_jax.program(work)
  assert counted(fn, *args) == 4 * total


# The tools.


def test_sides_are_sampled_in_turn(monkeypatch):
  order = []
  calls = {
    name: lambda name=name: order.append(name) or jnp.zeros(()) for name in 'ab'
  }
  monkeypatch.setattr(measure, 'SECONDS_PER_SAMPLE', 0.0)
  times = measure.in_turn(calls, measure.Settings(repeats=3))
  assert ''.join(order) == 'aabb' + 'ab' + 'ba' + 'ab'
  assert [len(times[name]) for name in 'ab'] == [3, 3]


def test_what_takes_long_is_sampled_twice():
  settings = measure.Settings(repeats=9, seconds=0)
  times = measure.in_turn({'a': lambda: jnp.zeros(())}, settings)
  assert len(times['a']) == 2


def test_a_spread_has_median_and_ends():
  assert measure.milliseconds('ms', [0.004, 0.001, 0.002]) == {
    'ms': 2.0,
    'ms_min': 1.0,
    'ms_max': 4.0,
  }


def test_a_table_shows_ranges_gaps_and_failures(capsys):
  shown = table.Table(
    {'ms': table.Ranged('.1f'), 'used': 'd'}, ['a', 'long name', 'c']
  )
  shown.begin('a')
  shown.end({'ms': 2.0, 'ms_min': 1.0, 'ms_max': 4.04, 'used': 3})
  shown.begin('long name')
  shown.end({'used': 4})
  shown.begin('c')
  shown.fail(UserError('no memory\nmore'))
  head, first, second, third = capsys.readouterr().out.splitlines()
  assert head.split() == ['ms', 'used']
  assert first.split() == ['a', '2.0', '(1.0..4.0)', '3']
  assert second.split() == ['long', 'name', '4']
  assert third == 'c          failed: no memory'
  assert first.index('3', 12) == second.index('4') == head.index('used') + 3


def test_an_unknown_group_is_answered_with_the_nearest(capsys):
  with pytest.raises(SystemExit):
    run.main(['--only', 'iteraton'])
  assert 'did you mean iteration?' in capsys.readouterr().err


def test_a_row_that_fails_does_not_end_the_run(tmp_path, capsys):
  def fails():
    raise UserError('out of memory')

  rows = {'a': fails, 'b': lambda: measure.spread('ms', [1.0])}
  path = tmp_path / 'rows.jsonl'
  settings = measure.Settings(tiny=True)
  assert run.measure_all({'iteration': rows}, settings, path) == 1
  assert 'failed: out of memory' in capsys.readouterr().out
  assert json.loads(path.read_text())['name'] == 'b'


def test_a_child_that_fails_says_why():
  with pytest.raises(UserError, match='invalid int value'):
    measure.child('benchmarks.scaling', 'x', precision='float32')


class Fake:
  """A worker that takes a known time."""

  def __init__(self, seconds, log, name):
    self._seconds, self._log, self._name = seconds, log, name

  def ready(self):
    return {'device': 'cpu'}

  def seconds(self):
    self._log.append(self._name)
    return self._seconds

  def close(self):
    self._log.append(f'{self._name} closed')


@pytest.fixture
def fakes(monkeypatch):
  """Workers without processes; what they were told."""
  log = []
  seconds = {'maml_jax': 0.5, 'pytorch_maml': 1.0, 'learn2learn': 2.0}
  monkeypatch.setattr(
    compare,
    'Worker',
    lambda python, name, *_, **__: Fake(seconds[name], log, name),
  )
  return log


def test_peers_are_compared_round_by_round(fakes, tmp_path, capsys):
  path = tmp_path / 'rows.jsonl'
  peers = ['--pytorch_maml=a', '--learn2learn=b', '--workloads', '5w1s']
  assert compare.main([*peers, '--pairs=2', f'--json={path}']) == 0
  ours, *theirs = 'maml_jax', 'pytorch_maml', 'learn2learn'
  assert fakes[:9] == [ours, *theirs, *theirs[::-1], ours, ours, *theirs]
  assert all(f'{name} closed' in fakes for name in (ours, *theirs))
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert [(r['peer'], r['ratio']) for r in rows] == [
    ('pytorch_maml', 2.0),
    ('learn2learn', 4.0),
  ]
  assert all(r['differs'] and r['device'] == 'cpu' for r in rows)
  assert 'learn2learn   2.000 s =  4.00 x' in capsys.readouterr().out


def test_a_peer_that_cannot_run_is_left_out(fakes, monkeypatch, capsys):
  def not_ready(worker):
    if worker._name == 'learn2learn':
      raise UserError('ModuleNotFoundError: no torch')
    return {}

  monkeypatch.setattr(Fake, 'ready', not_ready)
  peers = ['--pytorch_maml=a', '--learn2learn=b', '--workloads', '5w1s']
  assert compare.main([*peers, '--pairs=1']) == 1
  out = capsys.readouterr().out
  assert 'learn2learn left out: ModuleNotFoundError: no torch' in out
  assert 'pytorch_maml: median ratio 2.00' in out


def test_a_worker_says_why_it_cannot_run():
  out = io.StringIO()
  worker.serve(out, 'pytorch_maml', '5w1s', 'float32', '/nowhere')
  error = json.loads(out.getvalue())['error']
  assert error.startswith('ModuleNotFoundError')


# The script for machines with a GPU, with an echo in the place of Python.


@pytest.fixture
def gpu_script(tmp_path):
  """Runs it: parts -> exit status and output."""
  if not shutil.which('setsid'):
    pytest.skip('the script is for Linux')
  python = tmp_path / 'python'
  fails = 'case "$*" in "-m pytest"*) exit 1; esac'
  python.write_text(f'#!/bin/sh\necho "ran $*"\n{fails}\n')
  python.chmod(0o755)
  env = {'OUT': f'{tmp_path}/out', 'PYTHON': f'{python}', 'TRY': '1'}

  def call(parts):
    done = subprocess.run(
      [SCRIPT],
      env=os.environ | env | {'PARTS': parts, 'MAML_JAX_DATA': ''},
      capture_output=True,
      text=True,
    )
    return done.returncode, done.stdout

  return call


def test_the_script_repeats_what_failed_and_nothing_else(gpu_script):
  status, out = gpu_script('tests,bench')
  assert status == 1 and 'tests: failed (1)' in out
  groups = ' '.join(line for line in out.splitlines() if '--only' in line)
  for group in run.GROUPS.keys() - OF_CPU:
    assert f'--only {group}' in groups
  status, out = gpu_script('bench,tests')
  assert status == 1 and '-m pytest' in out and '--only' not in out
  assert gpu_script('bench')[0] == 0


def test_the_script_trains_and_evaluates_only_with_data(gpu_script):
  status, out = gpu_script('train,eval')
  assert status == 0 and 'training: skipped' in out and 'ran' not in out


def test_the_script_refuses_an_unknown_part(gpu_script):
  status, out = gpu_script('bnch')
  assert status == 1 and 'error: no part bnch' in out
