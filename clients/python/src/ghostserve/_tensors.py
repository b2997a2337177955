"""Tensors of answers, and the container that they arrive in: safetensors."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The names of element types in the container; their names in NumPy; bytes of one element.
_TYPES = {"F32": ("float32", 4), "F16": ("float16", 2)}


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """Numbers in row-major order, without a copy of the answer's bytes.

    `numpy.asarray(tensor)` works, and so does everything that takes arrays: a tensor implements `__array__`.
    """

    #: `float32` or `float16`, little endian.
    dtype: str
    shape: tuple[int, ...]
    #: The elements as bytes: read-only.
    data: memoryview

    def numpy(self) -> NDArray[np.floating[Any]]:
        """The tensor as a read-only NumPy array that shares its memory.

        Raises `ImportError` without NumPy, which `pip install numpy` installs.
        """
        import numpy as np

        # '<': little endian on every machine.
        array: NDArray[np.floating[Any]] = np.frombuffer(self.data, np.dtype(self.dtype).newbyteorder("<"))
        return array.reshape(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """The tensor for `numpy.asarray`."""
        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise ValueError(f"a tensor of {self.dtype} becomes one of {dtype} only by a copy")
            return array.astype(dtype)
        return array.copy() if copy else array

    def __getitem__(self, row: int) -> Tensor:
        """One row of the first dimension, which in answers is the image."""
        if not self.shape:
            raise IndexError("a number has no rows")
        rows, shape = self.shape[0], self.shape[1:]
        if not -rows <= row < rows:
            raise IndexError(f"row {row} of {rows}")
        size = len(self.data) // rows
        start = (row % rows) * size
        return Tensor(self.dtype, shape, self.data[start : start + size])

    def __len__(self) -> int:
        """The number of rows."""
        return self.shape[0] if self.shape else 0

    def __repr__(self) -> str:
        """Type and shape; the elements are many."""
        return f"Tensor({self.dtype}, shape={self.shape})"


def parse_safetensors(content: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Reads a safetensors file: the text of its metadata, and its tensors by name.

    Raises `ValueError` if the file is damaged or has elements of another type than f32 and f16.
    """
    if len(content) < 8:
        raise ValueError("the file is shorter than its length field")
    begin = 8 + int.from_bytes(content[:8], "little")
    if begin > len(content):
        raise ValueError("the header is longer than the file")
    header = json.loads(content[8:begin])
    metadata = header.pop("__metadata__", {})
    # Bytes are immutable, and so are views of them.
    data = memoryview(content)[begin:]
    return metadata, {name: _tensor(name, entry, data) for name, entry in header.items()}


def _tensor(name: str, entry: dict[str, Any], data: memoryview) -> Tensor:
    if entry["dtype"] not in _TYPES:
        raise ValueError(f"tensor {name} has elements of type {entry['dtype']}; known are F32 and F16")
    dtype, size = _TYPES[entry["dtype"]]
    start, end = entry["data_offsets"]
    shape = tuple(int(side) for side in entry["shape"])
    if not 0 <= start <= end <= len(data) or end - start != math.prod(shape) * size:
        raise ValueError(f"tensor {name} does not fit its shape {shape} or the file")
    return Tensor(dtype, shape, data[start:end])
