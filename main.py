"""Few-shot meta-learning in JAX: `python main.py --help`."""

from maml_jax.__main__ import main

if __name__ == '__main__':
  main()
