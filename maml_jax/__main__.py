"""The program: `python -m maml_jax`, `maml-jax` or `python main.py`."""

import sys

from maml_jax import cli
from maml_jax.utils.huge_pages import restart_with_huge_pages


def main() -> None:
  """Runs the command line and exits with its status."""
  restart_with_huge_pages()
  sys.exit(cli.main(sys.argv[1:]))


if __name__ == '__main__':
  main()
