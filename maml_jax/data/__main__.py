"""python -m maml_jax.data: prepare and list data sets."""
