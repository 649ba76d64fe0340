"""Learns to classify from few images: `python main.py --help`."""

import pathlib
import sys

from maml_jax import cli
from maml_jax.utils.huge_pages import restart_with_huge_pages

PRESET = pathlib.Path(__file__).with_name('configs') / 'glyphs_5w1s.py'

if __name__ == '__main__':
  restart_with_huge_pages()
  sys.exit(cli.main(sys.argv[1:], str(PRESET)))
