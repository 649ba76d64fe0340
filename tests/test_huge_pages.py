"""Programs that start once more to get huge pages."""

import os
import subprocess
import sys

import pytest

from maml_jax.utils import huge_pages

PROGRAM = """
import os, sys
from maml_jax.hugepages import restart_with_huge_pages
restart_with_huge_pages()
import numpy
for _ in range(2):
  before = open('/proc/self/stat').read().rsplit(')', 1)[1].split()[7]
  block = numpy.ones(100_000_000, numpy.uint8)
  del block
  after = open('/proc/self/stat').read().rsplit(')', 1)[1].split()[7]
print(os.getpid(), int(after) - int(before), *sys.argv[1:])
"""


def run(**env):
  with subprocess.Popen(
    [sys.executable, '-c', PROGRAM, 'a b', '--c'],
    stdout=subprocess.PIPE,
    text=True,
    env={'NUMPY_MADVISE_HUGEPAGE': '0', **os.environ, **env},
  ) as process:
    pid, faults, *rest = process.stdout.read().split(maxsplit=2)
  assert process.returncode == 0
  assert int(pid) == process.pid, 'the same process, so that signals find it'
  assert rest == ['a b --c\n']
  return int(faults)


@pytest.mark.skipif(
  not huge_pages.huge_pages_environment(),
  reason='this machine has no huge pages',
)
def test_memory_that_was_taken_once_is_not_taken_again():
  """100 MB are 24,414 pages of 4 kB."""
  assert run(GLIBC_TUNABLES='') < 1000
  assert run(GLIBC_TUNABLES='glibc.malloc.hugetlb=0') > 20_000


@pytest.mark.parametrize(
  'offer, told, expected',
  [
    ('always [madvise] never', '', True),
    ('[always] madvise never', 'glibc.elision.enable=1', True),
    ('always madvise [never]', '', False),
    (None, '', False),
    ('always [madvise] never', 'glibc.malloc.check=1', False),
  ],
)
def test_asks_where_there_is_something_to_gain(
  offer, told, expected, tmp_path, monkeypatch
):
  monkeypatch.setattr(huge_pages, 'KERNEL_SETTING', tmp_path / 'enabled')
  if offer:
    (tmp_path / 'enabled').write_text(offer)
  monkeypatch.setenv('GLIBC_TUNABLES', told)
  value = huge_pages.huge_pages_environment().get('GLIBC_TUNABLES', '')
  assert ('glibc.malloc.hugetlb=1' in value) == expected
  assert not expected or value.startswith(told)
