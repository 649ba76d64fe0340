"""Tests of programs that are compiled for machines that are not there."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import aot, aot_hlo
from maml_jax import config as config_lib
from maml_jax import ops
from maml_jax.types import Dataset, Model
from maml_jax.utils.errors import UserError

# A loop of three iterations that copies an array of 4 x 130 floats, stored in
# tiles of 8 x 128, to another layout, and a loop whose length is an input.
HLO = pathlib.Path(__file__).with_name('aot_loops.hlo')


def test_hlo_counts_loops_tiles_and_memory_spaces():
  program = aot_hlo.summarize(aot_hlo.parse(HLO.read_text()))
  rows, columns = 8 * 256 * 4, 136 * 128 * 4  # bytes in the two layouts
  copied = 3 * (rows + columns)
  read = 3 * (rows + columns)  # the result of the fusion is in memory space 1
  assert program == {
    'kernels': 7,
    'moved_bytes': copied + read + 2 * rows,
    'copied_bytes': copied,
    'convolutions': {'backward-filter': 3},
    'all_reduces': 1,
    'all_reduce_bytes': rows,
    'cycles': {'copy': 300, 'convolution': 21, 'all-reduce': 0},
  }


@pytest.mark.parametrize(
  ('type_', 'expected'),
  [
    ('f32[]', 4),
    ('bf16[3,5]{1,0}', 30),
    ('bf16[3,5]{1,0:T(8,128)(2,1)}', 8 * 128 * 2),
    ('u8[2,84,84,3]{0,2,1,3:T(8,128)(4,1)}', 3 * 84 * 88 * 128),
    ('(f32[2]{0}, pred[3]{0})', 11),
  ],
)
def test_bytes_of_a_type_include_the_padding_of_tiles(type_, expected):
  assert aot_hlo.type_bytes(type_) == expected


def test_missing_compiler_is_a_user_error(monkeypatch):
  monkeypatch.setattr(aot.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match='needs the package libtpu.*make aot'):
    aot.described_devices('tpu', 'v5e:2x2', '')


def one_block_model(encoder, num_ways, image_shape, **_):
  """Replaces `make_model`: convolution, pooling and a head.

  ConvNet4 takes minutes to compile.
  """
  del encoder

  def init(key):
    keys = jax.random.split(key)
    kernel = jax.random.normal(keys[0], (3, 3, image_shape[-1], 8))
    weight = jax.random.normal(keys[1], (8, num_ways))
    return {'encoder': {'conv': kernel}, 'classifier': {'kernel': weight}}, {}

  def apply(params, stats, images, *, train):
    del train
    kernel = ops.block_diagonal(params['encoder']['conv'])
    x = ops.max_pool(ops.conv(ops.merge_channels(images), kernel))
    x = ops.split_channels(jnp.square(x).mean((1, 2)))
    return x @ params['classifier']['kernel'], stats

  return Model(init, apply)


@pytest.mark.slow
def test_small_step_compiles_well_for_tpus(monkeypatch):
  """Four tasks of 28 pixels on two chips, with 38,400 images.

  In bfloat16: each convolution in float32 takes ten times as long to compile.
  """
  pytest.importorskip('libtpu', reason='no compiler for TPUs, see `make aot`')
  flags = [
    '--train.meta_batch_size=4',
    '--inner.num_steps=2',
    '--inner.frozen=',
    '--precision=bfloat16',
  ]
  config = config_lib.load('glyphs_5w1s', flags)
  count, shape = 38_400, (28, 28, 1)
  dataset = Dataset(
    np.broadcast_to(np.zeros((1, *shape), np.uint8), (count, *shape)),
    np.arange(count, dtype=np.int32).reshape(64, -1),
    np.full(64, count // 64, np.int32),
  )
  monkeypatch.setattr(aot.setup, 'load_split', lambda *_: dataset)
  monkeypatch.setattr(aot.setup, 'make_model', one_block_model)
  devices = aot.described_devices('tpu', 'v5e:2x2', '')[:2]
  row = aot.measure(config, devices, aot.CHIPS['v5e'])
  assert row['chips'] == 2 and row['all_reduces'] == 1
  assert row['grouped_convolutions'] == 0
  # Two tasks on each chip, side by side. Query pass: forward and kernel
  # gradient. Each inner step: these, and both of their derivatives.
  assert row['forward_convolutions'] >= 1 + 2
  assert row['backward-filter_convolutions'] >= 1 + 2
  # The images take 39 MB in tiles. Nothing near that is copied.
  assert 39 < row['argument_mb'] < 42
  assert row['copied_gb'] < 0.01 and row['temporary_mb'] < 20
  assert 0 < row['pooling_ms'] < row['ms'] < 5


@pytest.fixture
def no_compiler(monkeypatch):
  """Replaces the compiler, which returns a row, and its devices."""
  monkeypatch.setattr(aot, 'described_devices', lambda *_: [None] * 4)
  monkeypatch.setattr(aot, 'measure', lambda *_: {'chips': 1})


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--topology=v4:2x2'], '--topology: chip=v4: unknown'),
    (['--chips=0'], '--chips=0: must be at least 1'),
    (['--platform=cuda', '--chips=-2'], '--chips=-2: must be at least 1'),
    (['--chips=5'], '--chips=5: v5e:2x2 has 4 chips'),
    (['--inner.unrol=True'], 'did you mean inner.unroll'),
  ],
)
def test_invalid_arguments_are_user_errors(no_compiler, capsys, args, message):
  with pytest.raises(SystemExit, match='2'):
    aot.main(args)
  assert message in capsys.readouterr().err


@pytest.mark.parametrize('flag', ['--json', '--hlo'])
def test_unwritable_file_is_an_error_before_compilation(
  no_compiler, monkeypatch, tmp_path, capsys, flag
):
  monkeypatch.setattr(aot, 'measure', lambda *_: pytest.fail('compiled'))
  with pytest.raises(SystemExit, match='2'):
    aot.main([f'{flag}={tmp_path / "missing" / "file"}'])
  assert 'cannot write' in capsys.readouterr().err


def test_failed_compilation_is_an_error(no_compiler, monkeypatch, capsys):
  def measure(*_):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of HBM\nmore')

  monkeypatch.setattr(aot, 'measure', measure)
  with pytest.raises(SystemExit, match='2'):
    aot.main([])
  error = capsys.readouterr().err
  assert error.endswith('the compiler failed: RESOURCE_EXHAUSTED: out of HBM\n')


def test_unused_chips_are_an_error():
  config = config_lib.load('mini_5w1s', [])
  with pytest.raises(UserError, match='--chips=3: .*size=4 uses 2 of them'):
    aot.compile_train_step(config, jax.devices()[:3])


def test_row_follows_a_part_of_a_line(no_compiler, tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text('{"name": "cu')
  for _ in range(2):
    assert aot.main([f'--json={path}']) == 0
  first, *rows = path.read_text().splitlines()
  assert first == '{"name": "cu'
  row = {'name': 'mini_5w1s', 'chip': 'v5e', 'chips': 1}
  assert list(map(json.loads, rows)) == [row, row]
