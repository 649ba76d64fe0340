"""Converts configs and checkpoints of PyTorch-MAML.

    python -m maml_jax.pytorch_maml config TRAIN.yaml --test TEST.yaml
    python -m maml_jax.pytorch_maml checkpoint FILE.pth --output runs/NAME
    python -m maml_jax.pytorch_maml checkpoint runs/NAME --to FILE.pth

The functions need neither PyTorch-MAML nor PyTorch: `from_torch` and `to_torch`
convert named tensors, and `convert_config` converts the content of YAML files.
"""

from maml_jax.pytorch_maml.configs import convert_config
from maml_jax.pytorch_maml.weights import from_torch, to_torch

__all__ = ['convert_config', 'from_torch', 'to_torch']
