"""Deterministic pseudo-random tensors, bit-identical in Python and in Rust.

The parity tests need weights for a whole network. Storing them would take tens of megabytes, so
both sides generate them: every element follows from the tensor's name and the element's
row-major index, by integer arithmetic modulo 2^64 and a few float64 operations that IEEE 754
defines exactly. Nothing depends on the order in which tensors are generated or on a library's
random number generator.

For a tensor called `key`:

    seed = FNV-1a, 64 bits, of the UTF-8 bytes of `key`
    z    = seed + (i + 1) * 0x9E3779B97F4A7C15          (SplitMix64's i-th output)
    z    = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z    = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z    = z ^ (z >> 31)
    u    = (z >> 40) * 2^-24                            exact, in [0, 1)
    s    = 2 * u - 1                                    exact, in [-1, 1)

and the value, in float64 and rounded once to float32 at the end, depends on the part of the key
after its last dot:

    running_mean                 0.1 * s
    running_var                  0.5 + u
    weight, rank 1               0.5 + u                (the scale of a batch normalisation),
                                 and BRANCH * (0.5 + u) if the key contains "_rpr_"
    bias                         0.1 * s
    weight, rank 2 or more       s * (GAIN * sqrt(6 / fan_in)),  fan_in = product(shape[1:]),
                                 and twice that if the key contains ".conv_pw"
    anything else                2 * s                  (for instance "input")
"""

from __future__ import annotations

import math

import numpy as np

# With 1 the activations grow by a factor of 100,000 through the network and every gate saturates. With
# this value activations keep a standard deviation between 1 and 4 from the first stage to the last,
# the gates of the attention spread over (0, 1), and the logits are of order 1.
GAIN = 0.65

# GhostNetV3's training form adds up to five parallel branches where the other networks have one layer.
# Each branch ends in a batch normalisation and has "_rpr_" in its key; scaling all of them by this keeps
# the sum's size (with 1 the logits reach 1e9, with 0.5 they shrink to a third). 9/16 is exact in
# binary, and so is its product with the 25 bits of 0.5 + u: only the rounding to float32 remains.
BRANCH = 0.5625

# MobileNetV2's activations shrink without the Ghost modules' copies: its pointwise convolutions (".conv_pw",
# ".conv_pwl"; no other network has keys like that) get twice the bound.
POINTWISE = 2.0

_FNV_OFFSET = 0xCBF29CE484222325
_FNV_PRIME = 0x100000001B3
_MASK = 0xFFFFFFFFFFFFFFFF


def fnv1a(key: str) -> int:
    """The 64-bit FNV-1a hash of the key's UTF-8 bytes."""
    h = _FNV_OFFSET
    for byte in key.encode("utf-8"):
        h = ((h ^ byte) * _FNV_PRIME) & _MASK
    return h


def uniform(key: str, count: int) -> np.ndarray:
    """The first `count` values of u for `key`, as float64."""
    # Arrays of uint64 wrap modulo 2^64 without a warning; NumPy scalars would warn.
    z = np.arange(1, count + 1, dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(fnv1a(key))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) * 2.0**-24


def synthetic(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 tensor that belongs to `key` and `shape`."""
    shape = tuple(int(n) for n in shape)
    u = uniform(key, math.prod(shape))
    s = 2.0 * u - 1.0
    last = key.rsplit(".", 1)[-1]
    if last == "running_mean" or last == "bias":
        value = 0.1 * s
    elif last == "running_var":
        value = 0.5 + u
    elif last == "weight" and len(shape) == 1:
        value = BRANCH * (0.5 + u) if "_rpr_" in key else 0.5 + u
    elif last == "weight" and len(shape) >= 2:
        fan_in = math.prod(shape[1:])
        bound = GAIN * math.sqrt(6.0 / fan_in)
        value = s * (POINTWISE * bound if ".conv_pw" in key else bound)
    else:
        value = 2.0 * s
    return value.astype(np.float32).reshape(shape)
