"""Tests of programs that are compiled for machines that are not there."""

import numpy as np
import pytest

from benchmarks import aot, aot_hlo
from maml_jax import config as config_lib
from maml_jax.types import Dataset
from maml_jax.utils.errors import UserError

# A loop of three iterations that copies an array of 4 x 130 floats, stored in
# tiles of 8 x 128, to another layout, and a loop whose length is an input.
HLO = """HloModule jit_step, is_scheduled=true

%cond (arg.1: (s32[], f32[4,130])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  %arg.1 = (s32[]{:T(128)}, f32[4,130]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

%fused (p0: f32[4,130], p1: f32[4,130]) -> f32[4,130] {
  %p0 = f32[4,130]{1,0:T(8,128)} parameter(0)
  %p1 = f32[4,130]{1,0:T(8,128)} parameter(1)
  ROOT %conv = f32[4,130]{1,0:T(8,128)} convolution(%p0, %p1), dim_labels=bf_io->bf, metadata={op_name="jit(step)/conv_kernel_grad/conv_general_dilated"}
}

%body (arg.2: (s32[], f32[4,130])) -> (s32[], f32[4,130]) {
  %arg.2 = (s32[]{:T(128)}, f32[4,130]{1,0:T(8,128)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%arg.2), index=0
  %x.2 = f32[4,130]{1,0:T(8,128)} get-tuple-element(%arg.2), index=1
  %copy.2 = f32[4,130]{0,1:T(8,128)} copy(%x.2), backend_config={"window_config":{"estimated_cycles":"100"}}
  %grad = f32[4,130]{1,0:T(8,128)S(1)} fusion(%x.2, %copy.2), kind=kOutput, calls=%fused, backend_config={"window_config":{"estimated_cycles":"7"}}
  ROOT %out.2 = (s32[]{:T(128)}, f32[4,130]{1,0:T(8,128)}) tuple(%i.2, %x.2)
}

%outer_cond (arg.3: (s32[], s32[], f32[4,130])) -> pred[] {
  %arg.3 = (s32[]{:T(128)}, s32[]{:T(128)}, f32[4,130]{1,0:T(8,128)}) parameter(0)
  %i.3 = s32[]{:T(128)} get-tuple-element(%arg.3), index=0
  %n.3 = s32[]{:T(128)} get-tuple-element(%arg.3), index=1
  ROOT %lt.3 = pred[]{:T(512)} compare(%i.3, %n.3), direction=LT
}

%outer_body (arg.4: (s32[], s32[], f32[4,130])) -> (s32[], s32[], f32[4,130]) {
  %arg.4 = (s32[]{:T(128)}, s32[]{:T(128)}, f32[4,130]{1,0:T(8,128)}) parameter(0)
  %x.4 = f32[4,130]{1,0:T(8,128)} get-tuple-element(%arg.4), index=2
  %zero = s32[]{:T(128)} constant(0)
  %start = (s32[]{:T(128)}, f32[4,130]{1,0:T(8,128)}) tuple(%zero, %x.4)
  %loop = (s32[]{:T(128)}, f32[4,130]{1,0:T(8,128)}) while(%start), condition=%cond, body=%body
  %sum = f32[4,130]{1,0:T(8,128)} all-reduce(%x.4), replica_groups={{0,1}}, to_apply=%add
  ROOT %out.4 = (s32[]{:T(128)}, s32[]{:T(128)}, f32[4,130]{1,0:T(8,128)}) tuple(%zero, %zero, %sum)
}

ENTRY %main (n: s32[], x: f32[4,130]) -> f32[4,130] {
  %n = s32[]{:T(128)} parameter(0)
  %x = f32[4,130]{1,0:T(8,128)} parameter(1)
  %first = (s32[]{:T(128)}, s32[]{:T(128)}, f32[4,130]{1,0:T(8,128)}) tuple(%n, %n, %x)
  %steps = (s32[]{:T(128)}, s32[]{:T(128)}, f32[4,130]{1,0:T(8,128)}) while(%first), condition=%outer_cond, body=%outer_body
  ROOT %y = f32[4,130]{1,0:T(8,128)} get-tuple-element(%steps), index=2
}
"""


def test_hlo_counts_loops_tiles_and_memory_spaces():
  program = aot_hlo.summarize(aot_hlo.parse(HLO))
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


@pytest.mark.slow
def test_small_step_compiles_well_for_tpus(monkeypatch):
  """Two tasks of 28 pixels on two chips, with 38,400 images."""
  pytest.importorskip('libtpu', reason='no compiler for TPUs, see `make aot`')
  flags = ['--train.meta_batch_size=2', '--inner.num_steps=2']
  config = config_lib.load('glyphs_5w1s', flags)
  count, shape = 38_400, (28, 28, 1)
  dataset = Dataset(
    np.broadcast_to(np.zeros((1, *shape), np.uint8), (count, *shape)),
    np.arange(count, dtype=np.int32).reshape(64, -1),
    np.full(64, count // 64, np.int32),
  )
  monkeypatch.setattr(aot.setup, 'load_split', lambda *_: dataset)
  devices = aot.described_devices('tpu', 'v5e:2x2', '')[:2]
  row = aot.measure(config, devices, aot.CHIPS['v5e'])
  assert row['chips'] == 2 and row['all_reduces'] == 1
  assert row['grouped_convolutions'] == 0
  assert row['forward_convolutions'] + row['backward-filter_convolutions'] > 8
  # The images take 39 MB as they are stored. Nothing near that is copied.
  assert 39 < row['argument_mb'] < 42
  assert row['copied_gb'] < 0.02 and row['temporary_mb'] < 30
  assert 0 < row['ms'] < 5
