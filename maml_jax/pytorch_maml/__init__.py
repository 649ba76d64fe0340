"""Conversion of PyTorch-MAML's configs and checkpoints.

    python -m maml_jax.pytorch_maml config TRAIN.yaml --test TEST.yaml
    python -m maml_jax.pytorch_maml checkpoint FILE.pth --output runs/NAME
    python -m maml_jax.pytorch_maml checkpoint runs/NAME --to FILE.pth

As functions, which need neither its code nor PyTorch: `from_torch` and
`to_torch` convert named tensors, `convert_config` the content of YAML files.
"""

from maml_jax.pytorch_maml.configs import convert_config
from maml_jax.pytorch_maml.weights import from_torch, to_torch

__all__ = ['convert_config', 'from_torch', 'to_torch']
