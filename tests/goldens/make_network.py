"""Writes network.safetensors (reference logits) and synthetic.json (spot values of the generator).

The networks are timm's, on CPU in float32, with every parameter and buffer replaced by
`synthetic(key, shape)` under the key it has in timm's state dict. Each forward pass is repeated in
float64 with the same float32 weights; the summary prints how far float32 alone moves the logits,
which is what the tests' tolerance has to leave room for.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.numpy import save

from synthetic import GAIN, fnv1a, synthetic

HERE = Path(__file__).resolve().parent

# (name of the golden tensor, timm model, height and width of the input)
GOLDENS = [
    ("ghostnetv2_100.logits", "ghostnetv2_100", 224),
    ("ghostnetv2_130.logits", "ghostnetv2_130", 224),
    ("ghostnetv2_160.logits", "ghostnetv2_160", 224),
    ("ghostnetv2_100.64.logits", "ghostnetv2_100", 64),
]

# At least one key for every rule of the generator, including a name outside ASCII.
SPOTS = [
    ("conv_stem.weight", (16, 3, 3, 3)),
    ("bn1.weight", (16,)),
    ("bn1.bias", (16,)),
    ("bn1.running_mean", (16,)),
    ("bn1.running_var", (16,)),
    ("blocks.2.0.ghost1.short_conv.2.weight", (72, 1, 1, 5)),
    ("blocks.3.0.se.conv_reduce.bias", (20,)),
    ("blocks.9.0.conv.weight", (960, 160, 1, 1)),
    ("classifier.weight", (1000, 1280)),
    ("classifier.bias", (1000,)),
    ("input", (2, 3, 224, 224)),
    ("input", (2, 3, 64, 64)),
    ("größe", (7,)),
    ("", (5,)),
]


def fill(model: torch.nn.Module) -> None:
    """Replaces everything in the model's state dict but the batch counters."""
    state = {
        key: torch.from_numpy(synthetic(key, tuple(value.shape)))
        for key, value in model.state_dict().items()
        if key.rsplit(".", 1)[-1] != "num_batches_tracked"
    }
    result = model.load_state_dict(state, strict=False)
    left = [key for key in result.missing_keys if not key.endswith("num_batches_tracked")]
    assert not left and not result.unexpected_keys, (left, result.unexpected_keys)


def watch_gates(model: torch.nn.Module, gates: list[torch.Tensor]) -> None:
    """Collects what the sigmoid of every attention branch returns."""
    for name, module in model.named_modules():
        if name.endswith("short_conv"):
            module.register_forward_hook(
                lambda _module, _inputs, output: gates.append(output.sigmoid().flatten())
            )


def bits(value: np.float32) -> str:
    return f"{value.view(np.uint32):08x}"


def spot(key: str, shape: tuple[int, ...]) -> dict:
    flat = synthetic(key, shape).reshape(-1)
    return {
        "key": key,
        "shape": list(shape),
        "seed": f"{fnv1a(key):016x}",
        "first": [bits(v) for v in flat[:4]],
        "last": bits(flat[-1]),
    }


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, timm {timm.__version__}, numpy {np.__version__}, gain {GAIN}")

    tensors = {}
    for golden, name, size in GOLDENS:
        model = timm.create_model(name, pretrained=False, num_classes=1000).eval()
        fill(model)
        gates: list[torch.Tensor] = []
        watch_gates(model, gates)
        image = torch.from_numpy(synthetic("input", (2, 3, size, size)))
        with torch.inference_mode():
            logits = model(image)
            gate = torch.cat(gates)
            double = model.double()(image.double())
        assert logits.shape == (2, 1000) and logits.dtype == torch.float32
        tensors[golden] = logits.numpy()
        print(
            f"{golden}: std {logits.std():.3f}, largest {logits.abs().max():.3f}, "
            f"between the two images {(logits[0] - logits[1]).abs().max():.3f}, "
            f"float32 against float64 {(logits.double() - double).abs().max():.2e}; "
            f"gates: mean {gate.mean():.3f}, std {gate.std():.3f}, "
            f"outside [0.01, 0.99] {((gate < 0.01) | (gate > 0.99)).double().mean():.2%}"
        )

    (HERE / "network.safetensors").write_bytes(save(tensors))
    lines = ",\n".join("  " + json.dumps(spot(key, shape), ensure_ascii=False) for key, shape in SPOTS)
    (HERE / "synthetic.json").write_text(
        f'{{\n "gain": {GAIN},\n "values": [\n{lines}\n ]\n}}\n', encoding="utf-8"
    )


if __name__ == "__main__":
    main()
