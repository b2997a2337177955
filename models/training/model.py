"""The network, its moving average, and the file the server loads."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from data import CLASSES

ARCHITECTURE = "ghostnetv2_100"


class WeightsError(Exception):
    """A weights file is missing, unreadable or does not fit. The message is meant for the user."""


class DeviceError(Exception):
    """The device asked for is not there. The message is meant for the user."""


def pick_device(name: str) -> torch.device:
    """``cpu``, ``cuda``, or ``auto``: the GPU where PyTorch sees one.

    Raises:
        DeviceError: ``cuda`` was asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise DeviceError("--device cuda: PyTorch sees no CUDA device here")
    if name == "auto":
        name = "cuda" if available else "cpu"
    return torch.device(name)


def build_model(drop_rate: float = 0.0) -> nn.Module:
    """timm's GhostNetV2 1.0 with one output a class, randomly initialised, channels-last."""
    model = timm.create_model(
        ARCHITECTURE, pretrained=False, num_classes=len(CLASSES), drop_rate=drop_rate
    )
    return model.to(memory_format=torch.channels_last)


class MovingAverage:
    """An exponential moving average of a network's weights and batch statistics.

    The average is what gets evaluated and shipped: it is steadier than any single step's weights,
    most of all in a run this short.
    """

    def __init__(self, model: nn.Module, max_decay: float, every: int) -> None:
        """``every``: steps between updates. Averaging is memory traffic, and rarer is as good."""
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._max_decay = max_decay
        self._every = every
        # State-dict tensors share the modules' storage, so the pairs stay valid for good.
        averages, currents = self.model.state_dict(), model.state_dict()
        self._pairs = list(zip(averages.values(), currents.values(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the network's state after ``step`` steps (counted from 1)."""
        if step % self._every != 0:
            return
        # Early on the decay is low, so that the random initialisation is soon forgotten.
        decay = min(self._max_decay, (1 + step) / (20 + step)) ** self._every
        for average, current in self._pairs:
            if average.is_floating_point():
                average.lerp_(current, 1 - decay)
            else:
                average.copy_(current)


def export_fp16(model: nn.Module, path: Path, dataset: str = "CIFAR-10") -> str:
    """Writes a network as safetensors under timm's key names and returns the file's SHA-256.

    Floating-point tensors are stored as fp16, which halves the file at no measurable loss of
    accuracy. The integer ``num_batches_tracked`` counters are kept: the file is then a complete
    state dict, and inference ignores them.

    Raises:
        WeightsError: a value is not finite, or too large for fp16.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        value = value.detach().cpu()
        if value.is_floating_point():
            value = value.to(torch.float16)
            if not value.isfinite().all():
                raise WeightsError(f"{name} holds values that are not finite in fp16")
        tensors[name] = value.contiguous()
    metadata = {
        "architecture": ARCHITECTURE,
        "num_classes": str(len(CLASSES)),
        "dataset": dataset,
    }
    content = _with_metadata(save(tensors, metadata), metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def load_weights(path: Path) -> nn.Module:
    """An fp32 network in evaluation mode, with a safetensors file's values in it.

    Raises:
        WeightsError: the file cannot be read, or its keys or shapes are not the network's.
    """
    if not path.is_file():
        raise WeightsError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}") from error
    model = build_model()
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit {ARCHITECTURE}: {error}") from error
    return model.eval()


def _with_metadata(content: bytes, metadata: dict[str, str]) -> bytes:
    """The same safetensors file with its metadata in the given order.

    The library writes them in an order that differs from run to run, which would give equal
    weights different digests.
    """
    start, length = 8, int.from_bytes(content[:8], "little")
    header = json.loads(content[start : start + length])
    header["__metadata__"] = metadata
    ordered = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
    assert len(ordered) == length, "reordering does not change the header's length"
    return content[:start] + ordered + content[start + length :]
