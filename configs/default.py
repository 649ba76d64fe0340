"""Every field with its default and meaning: see maml_jax/default_config.py."""

from maml_jax.default_config import get_config

__all__ = ['get_config']
