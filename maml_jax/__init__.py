"""Few-shot meta-learning in JAX: MAML and its relatives."""

__version__ = '0.1.0'
