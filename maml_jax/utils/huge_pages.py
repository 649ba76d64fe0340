"""Huge memory pages, which a program must request before it starts.

A meta-iteration on a CPU allocates and frees hundreds of megabytes. With pages
of 4 kB the kernel has to provide and clear 70,000 of them per task. The C
library (glibc 2.35 or newer) uses pages of 2 MB and keeps them if environment
variables are set when the program starts; see docs/performance.md.
"""

import os
import pathlib
import sys

__all__ = ['huge_pages_environment', 'restart_with_huge_pages']

TUNABLES = {
  'glibc.malloc.hugetlb': '1',
  # Keep freed memory for the next iteration.
  'glibc.malloc.mmap_max': '0',
  'glibc.malloc.trim_threshold': str(1 << 40),
  'glibc.malloc.arena_max': '1',
}
KERNEL_SETTING = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')


def huge_pages_environment() -> dict[str, str]:
  """Returns the environment variables that enable huge pages.

  Empty if the kernel does not offer them, or if $GLIBC_TUNABLES already
  configures malloc; so `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` disables them.
  """
  current = os.environ.get('GLIBC_TUNABLES', '')
  try:
    is_offered = '[never]' not in KERNEL_SETTING.read_text()
  except OSError:
    is_offered = False
  if not is_offered or 'glibc.malloc.' in current:
    return {}
  tunables = [f'{name}={value}' for name, value in TUNABLES.items()]
  return {'GLIBC_TUNABLES': ':'.join(filter(None, [current, *tunables]))}


def restart_with_huge_pages() -> None:
  """Re-executes this program with huge pages if they are available and unset.

  The process keeps its id.
  """
  if new := huge_pages_environment():
    argv = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, argv, os.environ | new)
