"""Short texts that tell tensors apart by all of their bytes."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

__all__ = ["digest", "digest_of"]


def digest(*tensors: Tensor) -> str:
    """Return 12 hexadecimal digits of the SHA-256 of the tensors' dtypes, shapes and bytes."""
    sha = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().cpu().contiguous()
        sha.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
        sha.update(plain.flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:12]


def digest_of(model: nn.Module) -> str:
    """Return the digest of a model's parameters and buffers."""
    return digest(*(value for value in model.state_dict().values() if isinstance(value, Tensor)))
