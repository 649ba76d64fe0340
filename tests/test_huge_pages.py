"""Restarting a program with huge pages."""

import os
import subprocess
import sys

import pytest

from maml_jax.utils import huge_pages

PROGRAM = """
import os, sys
from maml_jax.utils.huge_pages import restart_with_huge_pages
restart_with_huge_pages()
import numpy
for _ in range(2):
  before = open('/proc/self/stat').read().rsplit(')', 1)[1].split()[7]
  block = numpy.ones(100_000_000, numpy.uint8)
  del block
  after = open('/proc/self/stat').read().rsplit(')', 1)[1].split()[7]
print(os.getpid(), int(after) - int(before), *sys.argv[1:])
"""


def count_page_faults(**env):
  """Returns the page faults of the program's second allocation of 100 MB."""
  with subprocess.Popen(
    [sys.executable, '-c', PROGRAM, 'a b', '--c'],
    stdout=subprocess.PIPE,
    text=True,
    env={'NUMPY_MADVISE_HUGEPAGE': '0', **os.environ, **env},
  ) as process:
    pid, faults, *rest = process.stdout.read().split(maxsplit=2)
  assert process.returncode == 0
  assert int(pid) == process.pid, 'the restart must keep the process id'
  assert rest == ['a b --c\n']
  return int(faults)


@pytest.mark.skipif(
  not huge_pages.huge_pages_environment(),
  reason='this machine has no huge pages',
)
def test_freed_memory_is_reused_after_restart():
  """100 MB are 24,414 pages of 4 kB."""
  assert count_page_faults(GLIBC_TUNABLES='') < 1000
  assert count_page_faults(GLIBC_TUNABLES='glibc.malloc.hugetlb=0') > 20_000


@pytest.mark.parametrize(
  'kernel_setting, tunables, expected',
  [
    ('always [madvise] never', '', True),
    ('[always] madvise never', 'glibc.elision.enable=1', True),
    ('always madvise [never]', '', False),
    (None, '', False),
    ('always [madvise] never', 'glibc.malloc.check=1', False),
  ],
  ids=['madvise', 'always', 'never', 'unsupported', 'malloc_configured'],
)
def test_huge_pages_are_enabled_if_available_and_unset(
  kernel_setting, tunables, expected, tmp_path, monkeypatch
):
  monkeypatch.setattr(huge_pages, 'KERNEL_SETTING', tmp_path / 'enabled')
  if kernel_setting:
    (tmp_path / 'enabled').write_text(kernel_setting)
  monkeypatch.setenv('GLIBC_TUNABLES', tunables)
  value = huge_pages.huge_pages_environment().get('GLIBC_TUNABLES', '')
  assert ('glibc.malloc.hugetlb=1' in value) == expected
  assert not expected or value.startswith(tunables)
