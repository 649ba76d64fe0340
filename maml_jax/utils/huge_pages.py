"""Huge pages, which a program must ask for before it starts.

A meta-iteration on a CPU takes hundreds of megabytes from the system and gives
them back. In pages of 4 kB those are 70,000 a task, each to be handed out and
cleared. The C library (glibc 2.35 or newer) asks for pages of 2 MB, and keeps
them, if told to when a program starts; docs/performance.md has what that gains.
"""

import os
import pathlib
import sys

TUNABLES = {
  'glibc.malloc.hugetlb': '1',
  # Keep what was taken once, for the next iteration.
  'glibc.malloc.mmap_max': '0',
  'glibc.malloc.trim_threshold': str(1 << 40),
  'glibc.malloc.arena_max': '1',
}
KERNEL_SETTING = pathlib.Path('/sys/kernel/mm/transparent_hugepage/enabled')


def huge_pages_environment() -> dict[str, str]:
  """What to set for a program so that its memory is of huge pages.

  Empty where there are none, and where $GLIBC_TUNABLES says something of memory
  already, which `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` makes use of.
  """
  told = os.environ.get('GLIBC_TUNABLES', '')
  try:
    offered = '[never]' not in KERNEL_SETTING.read_text()
  except OSError:
    offered = False
  if not offered or 'glibc.malloc.' in told:
    return {}
  words = [f'{name}={value}' for name, value in TUNABLES.items()]
  return {'GLIBC_TUNABLES': ':'.join(filter(None, [told, *words]))}


def restart_with_huge_pages() -> None:
  """Starts this program anew, in the same process, if that gains huge pages."""
  if new := huge_pages_environment():
    argv = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, argv, os.environ | new)
