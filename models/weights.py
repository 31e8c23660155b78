"""Arrays as bytes: safetensors with a digest. Never pickle, which runs code when it is read."""

from __future__ import annotations

from collections.abc import Mapping

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor


class ArraysError(ValueError):
    """Bytes that are no usable safetensors record."""


def encode_arrays(arrays: Mapping[str, Tensor]) -> bytes:
    """The arrays as one safetensors record; equal arrays under equal names give equal bytes."""
    return bytes(save({name: arrays[name].detach().cpu().contiguous() for name in sorted(arrays)}))


def decode_arrays(data: bytes) -> dict[str, Tensor]:
    """Read what `encode_arrays` wrote.

    Raises:
        ArraysError: the bytes are no safetensors record.
    """
    try:
        return dict(load(data))
    except (SafetensorError, ValueError, KeyError) as error:
        raise ArraysError(f"{len(data)} bytes are no safetensors record: {error}") from error
