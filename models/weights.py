"""Arrays as bytes: safetensors with a digest. Never pickle, which runs code when it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from models.digests import digest_of


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


def arrays_under(arrays: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with the prefix, named without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def misfits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Names of arrays that are missing, unknown or of another shape than expected, in order."""
    return sorted(
        name
        for name in expected.keys() | found.keys()
        if name not in found or name not in expected or found[name].shape != expected[name].shape
    )


class SealedArrays(Mapping[str, Tensor]):
    """Arrays that are not changed any more, so that their bytes and digests are worked out once.

    Args:
        arrays: by name; shared, not copied.
    """

    def __init__(self, arrays: Mapping[str, Tensor]) -> None:
        self._arrays = dict(arrays)

    @classmethod
    def read(cls, data: bytes) -> SealedArrays:
        """What `encoded` was; nothing for no bytes.

        Raises:
            ArraysError: the bytes are no safetensors record.
        """
        found = cls(decode_arrays(data) if data else {})
        found.__dict__["encoded"] = data  # what was sent is what a digest is of
        return found

    def __getitem__(self, name: str) -> Tensor:
        """The array of that name."""
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._arrays)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._arrays)

    @cached_property
    def encoded(self) -> bytes:
        """One safetensors record; no bytes for no arrays."""
        return encode_arrays(self._arrays) if self._arrays else b""

    @cached_property
    def digest(self) -> str:
        """The digest of `encoded`."""
        return digest_of(self.encoded)

    @cached_property
    def parts(self) -> Mapping[str, bytes]:
        """Each array as a record of its own, by name."""
        return {name: encode_arrays({name: self._arrays[name]}) for name in sorted(self._arrays)}

    @cached_property
    def part_digests(self) -> Mapping[str, str]:
        """The digest of each part, by name."""
        return {name: digest_of(part) for name, part in self.parts.items()}


def seal(arrays: Mapping[str, Tensor]) -> SealedArrays:
    """The arrays as `SealedArrays`; those that are already are returned as they are."""
    return arrays if isinstance(arrays, SealedArrays) else SealedArrays(arrays)
