"""Moving over from PyTorch-MAML: its configs and its checkpoints.

    python -m maml_jax.compat config TRAIN.yaml --test TEST.yaml
    python -m maml_jax.compat checkpoint FILE.pth --output runs/NAME
    python -m maml_jax.compat checkpoint runs/NAME --to FILE.pth

As functions, which need neither its code nor PyTorch: `from_torch` and
`to_torch` convert tensors by name, `convert` the content of YAML files.
"""

from maml_jax.pytorch_maml.configs import convert_config
from maml_jax.pytorch_maml.weights import from_torch, to_torch

__all__ = ['convert', 'from_torch', 'to_torch']
