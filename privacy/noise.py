"""The one source of randomness on the DP path: an AES-256-CTR keystream turned into double-precision normals.

Everything random that a privacy proof relies on (Gaussian noise, Poisson sampling of patients) comes from a
`NoiseSource` handed in by the caller. The real one is `SystemNoise`: keyed from the operating system, without
any seed, so that nobody can replay it. Tests hand in another object; the receipt records `kind`.

Normals are made by Box and Muller's transform in float64, in blocks that stay in the processor's cache and are
drawn ahead of use: a request of a few numbers costs a copy. What floating point can still leak, and the public
grid that is the answer to it, are described in docs/assurance/noise.md and `privacy.mechanisms.round_to_grid`.

References:
    Box and Muller, A note on the generation of random normal deviates, 1958.
    Mironov, On significance of the least significant bits for differential privacy, CCS 2012.
    Holohan and Braghin, Secure random sampling in differential privacy, ESORICS 2021.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from torch import Tensor

BLOCK_PAIRS = 8192  # Box-Muller pairs made at once: 64 KiB per operand, all operands fit the L2 cache
BLOCK_NORMALS = 2 * BLOCK_PAIRS
REKEY_BYTES = 16 * 2**20  # a fresh key from the operating system this often, far below CTR's limits


class NoiseSource(Protocol):
    """Independent normals and uniforms that no adversary can predict."""

    @property
    def kind(self) -> str:
        """Name recorded in receipts; `aes-ctr` is the only one a site may use on patients."""

    def normal(self, shape: Sequence[int], *, scale: float = 1.0) -> Tensor:
        """Independent N(0, scale^2) draws, float64 on the CPU."""

    def uniform(self, n: int) -> Tensor:
        """`n` independent uniform draws in the open interval (0, 1), float64 on the CPU."""


class SystemNoise:
    """Normals and uniforms from AES-256 in counter mode, keyed by the operating system's entropy.

    Guarantees:
        - no seed: the key is 32 bytes of `os.urandom` that nothing else ever sees;
        - a value is handed out once: what was drawn ahead is dropped, and a new key taken, in a forked child;
        - threads may share one object; it can be neither copied nor pickled.
    """

    kind = "aes-ctr"

    def __init__(self) -> None:
        self._zeros = bytes(16 * BLOCK_PAIRS)
        self._stream = np.empty(2 * BLOCK_PAIRS + 2, dtype=np.uint64)  # OpenSSL asks for a spare block behind
        self._ahead = np.empty(BLOCK_NORMALS, dtype=np.float64)
        self._angle = np.empty(BLOCK_PAIRS, dtype=np.float64)
        self._radius = np.empty(BLOCK_PAIRS, dtype=np.float64)
        self._left = 0
        self._key_left = 0
        self._start_afresh()
        _LIVE.add(self)

    def normal(self, shape: Sequence[int], *, scale: float = 1.0) -> Tensor:
        """Draw independent N(0, scale^2) values.

        Args:
            shape: of the tensor.
            scale: standard deviation, finite and above 0.

        Returns:
            float64 CPU tensor.

        Raises:
            ValueError: `scale` is no finite number above 0.
        """
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale is {scale!r}; the noise needs a finite standard deviation above 0")
        out = np.empty(math.prod(shape), dtype=np.float64)
        with self._lock:
            self._check_process()
            done = 0
            while done < out.size:
                if self._left == 0 and out.size - done >= BLOCK_NORMALS:
                    self._fill(out[done : done + BLOCK_NORMALS], scale)
                    done += BLOCK_NORMALS
                    continue
                if self._left == 0:
                    self._fill(self._ahead, 1.0)
                    self._left = BLOCK_NORMALS
                take = min(self._left, out.size - done)
                np.multiply(self._ahead[self._left - take : self._left], scale, out=out[done : done + take])
                self._left -= take
                done += take
        return torch.from_numpy(out).reshape(tuple(shape))

    def uniform(self, n: int) -> Tensor:
        """Draw `n` independent uniform values, each one of the 2^52 numbers (k + 1/2) / 2^52.

        Returns:
            float64 CPU tensor of shape (n,), every value strictly between 0 and 1.
        """
        out = np.empty(n, dtype=np.float64)
        with self._lock:
            self._check_process()
            for start in range(0, n, BLOCK_NORMALS):
                part = out[start : start + BLOCK_NORMALS]
                bits = self._keystream()[: part.size]
                np.right_shift(bits, 12, out=bits)
                np.copyto(part, bits.view(np.int64), casting="unsafe")
        np.add(out, 0.5, out=out)
        np.multiply(out, 2.0**-52, out=out)
        return torch.from_numpy(out)

    def example_block(self) -> tuple[np.ndarray, np.ndarray]:
        """A block of keystream words and the normals made of them, for measuring the arithmetic.

        Never add these to anything: whoever holds the words knows the noise.
        """
        with self._lock:
            self._check_process()
            out = np.empty(BLOCK_NORMALS, dtype=np.float64)
            self._fill(out, 1.0)
            return self._stream[:BLOCK_NORMALS].copy(), out

    def _fill(self, out: np.ndarray, scale: float) -> None:
        """Write BLOCK_NORMALS normals to `out`: scale sqrt(-2 ln u) times cos and sin of a uniform angle."""
        bits = self._keystream()
        radius, angle = self._radius, self._angle
        # u = (k + 1/2) / 2^64 keeps 53 significant bits down to the smallest, so the tail reaches 9.5 sigma.
        np.copyto(radius, bits[:BLOCK_PAIRS], casting="unsafe")
        np.add(radius, 0.5, out=radius)
        np.multiply(radius, 2.0**-64, out=radius)
        np.log(radius, out=radius)
        np.multiply(radius, -2.0, out=radius)
        np.sqrt(radius, out=radius)
        np.multiply(radius, scale, out=radius)
        np.copyto(angle, bits[BLOCK_PAIRS:].view(np.int64), casting="unsafe")
        np.multiply(angle, math.pi * 2.0**-63, out=angle)
        # torch's sine and cosine are vectorised in float64, numpy's are not (2.7 against 8.3 ns each).
        angle_tensor, out_tensor = torch.from_numpy(angle), torch.from_numpy(out)
        torch.cos(angle_tensor, out=out_tensor[:BLOCK_PAIRS])
        torch.sin(angle_tensor, out=out_tensor[BLOCK_PAIRS:])
        np.multiply(out[:BLOCK_PAIRS], radius, out=out[:BLOCK_PAIRS])
        np.multiply(out[BLOCK_PAIRS:], radius, out=out[BLOCK_PAIRS:])

    def _keystream(self) -> np.ndarray:
        """The next 2 * BLOCK_PAIRS random 64-bit words, in a buffer that the next call overwrites."""
        if self._key_left <= 0:
            self._rekey()
        self._key_left -= len(self._zeros)
        self._cipher.update_into(self._zeros, memoryview(self._stream.view(np.uint8).data))
        return self._stream[: 2 * BLOCK_PAIRS]

    def _rekey(self) -> None:
        self._cipher: CipherContext = Cipher(
            algorithms.AES256(os.urandom(32)), modes.CTR(os.urandom(16))
        ).encryptor()
        self._key_left = REKEY_BYTES

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            self._start_afresh()

    def _start_afresh(self) -> None:
        """Drop whatever was drawn ahead and take a new key: at the start and in a forked child."""
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._left = 0
        self._ahead.fill(0.0)
        self._rekey()

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a noise source cannot be copied or pickled: two copies would give the same noise")


_LIVE: weakref.WeakSet[SystemNoise] = weakref.WeakSet()


def _start_all_afresh() -> None:
    for source in list(_LIVE):
        source._start_afresh()


os.register_at_fork(after_in_child=_start_all_afresh)
