"""Philox4x32-10 in NumPy (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC'11): the generator behind dropout masks, and random tensors in memory order, float64 before they are
rounded."""

from __future__ import annotations

import numpy as np

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)


def philox4x32(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Four 32-bit words per counter; ``counter`` is (n, 4), the result (n, 4) uint32."""
    c = [counter[:, i].astype(np.uint64) for i in range(4)]
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c[0], _M1 * c[2]
        high0, high1 = p0 >> np.uint64(32), p1 >> np.uint64(32)
        c = [high1 ^ c[1] ^ np.uint64(k0), p1 & _LOW, high0 ^ c[3] ^ np.uint64(k1), p0 & _LOW]
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return np.stack(c, 1).astype(np.uint32)


def words(seed: int, offset: int, count: int) -> np.ndarray:
    """The first ``count`` words of random call ``offset`` under ``seed``."""
    blocks = np.arange(-(-count // 4), dtype=np.uint64)
    counter = np.zeros((len(blocks), 4), np.uint64)
    counter[:, 0], counter[:, 1] = blocks & _LOW, blocks >> np.uint64(32)
    counter[:, 2], counter[:, 3] = offset & 0xFFFFFFFF, offset >> 32
    return philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(-1)[:count]


def uniform(seed: int, offset: int, count: int, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """In [low, high), 24 random bits each."""
    return low + (high - low) * ((words(seed, offset, count) >> 8) / 2.0**24)


def normal(seed: int, offset: int, count: int, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    """Pairs by Box and Muller's transform."""
    first, second = words(seed, offset, count + count % 2).reshape(-1, 2).astype(np.float64).T
    radius, angle = np.sqrt(-2 * np.log((first + 1) / 2**32)), 2 * np.pi * second / 2**32
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return mean + std * pairs.reshape(-1)[:count]


def integers(seed: int, offset: int, count: int, low: int, high: int) -> list[int]:
    """In [low, high): the upper half of a product with 64 random bits."""
    first, second = words(seed, offset, 2 * count).reshape(-1, 2).T.tolist()
    return [
        low + ((a + (b << 32)) * (high - low) >> 64) for a, b in zip(first, second, strict=True)
    ]
