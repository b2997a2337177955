"""Writes the expected values for the tests of the networks: network.safetensors, served.safetensors and JSON files.

The published networks are timm's, the ablations those of `variants.py`. All run on CPU in float32, with
every parameter and buffer replaced by `synthetic(key, shape)` under the key it has in timm's state dict.
The forward passes of the logits are repeated in float64 with the same float32 weights. The summary prints
how much float32 alone changes the logits: the tests' tolerance must be larger than that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.numpy import save
from torch import Tensor, nn

import variants
from synthetic import BRANCH, GAIN, fnv1a, synthetic

HERE = Path(__file__).resolve().parent

# (name of the golden tensor, timm model, height and width of the input)
GOLDENS = [
    ("ghostnetv2_100.logits", "ghostnetv2_100", 224),
    ("ghostnetv2_130.logits", "ghostnetv2_130", 224),
    ("ghostnetv2_160.logits", "ghostnetv2_160", 224),
    ("ghostnetv2_100.64.logits", "ghostnetv2_100", 64),
    ("ghostnet_050.logits", "ghostnet_050", 224),
    ("ghostnet_100.logits", "ghostnet_100", 224),
    ("ghostnet_130.logits", "ghostnet_130", 224),
    ("ghostnetv3_050.logits", "ghostnetv3_050", 224),
    ("ghostnetv3_100.logits", "ghostnetv3_100", 224),
    ("ghostnetv3_130.logits", "ghostnetv3_130", 224),
    ("ghostnetv3_160.logits", "ghostnetv3_160", 224),
    ("mobilenetv2_100.logits", "mobilenetv2_100", 224),
    ("mobilenetv2_140.logits", "mobilenetv2_140", 224),
]

# The last stage at each of the strides 2, 4, 8, 16 and 32.
DEEPEST = {
    "ghostnet_100": (0, 2, 4, 6, 8),
    "ghostnetv2_100": (0, 2, 4, 6, 8),
    "ghostnetv3_100": (0, 2, 4, 6, 8),
    "mobilenetv2_100": (0, 1, 2, 4, 6),
}

# Every STEP-th element of a feature map is stored. STEP is prime, so that the sample reaches every row and column.
STEP = 97

# Height and width of the input of every file in variants/: the smallest maps are 3×3, or not square.
VARIANTS = {
    "kernel_3": (96, 96),
    "kernel_7": (96, 128),
    "kernels_by_stage": (96, 128),
    "stages_subset": (96, 96),
    "stages_none": (96, 96),
    "stages_all": (96, 96),
    "enhance_output": (96, 96),
    "enhance_both": (96, 128),
    "gate_hard_sigmoid": (96, 96),
    "gate_clip": (96, 96),
    "after_nearest": (96, 96),
    "after_bilinear": (96, 128),
    "after_bicubic_odd": (100, 132),
    "bilinear": (96, 128),
    "bicubic": (96, 128),
    "pool_max": (96, 96),
    "stride_16": (96, 128),
    "stride_8": (96, 96),
    "grey": (96, 96),
    "width_037": (96, 96),
    "everything": (100, 132),
    "v3_kernel_3": (96, 96),
    "v3_both_stride_16": (96, 128),
    "mobile_expanded": (96, 96),
    "mobile_both": (96, 128),
    "mobile_stride_16": (96, 96),
}

# Networks in which variants.py must equal timm before its ablations are used: base, changed fields, and the same
# changes as arguments of timm. timm dilates only MobileNetV2, by the rule that variants.py extends to the Ghost networks.
AGREEMENTS: list[tuple[str, dict, dict]] = [
    ("ghostnet_050", {}, {}),
    ("ghostnet_100", {}, {}),
    ("ghostnetv2_100", {}, {}),
    ("ghostnetv2_130", {}, {}),
    ("ghostnetv2_100", {"input_channels": 1, "classes": 7}, {"in_chans": 1, "num_classes": 7}),
    ("ghostnetv3_050", {}, {}),
    ("ghostnetv3_100", {}, {}),
    ("mobilenetv2_100", {}, {}),
    ("mobilenetv2_140", {}, {}),
    ("mobilenetv2_100", {"width": 0.35}, {"name": "mobilenetv2_035"}),
    ("mobilenetv2_100", {"output_stride": 16}, {"output_stride": 16}),
    ("mobilenetv2_100", {"output_stride": 8}, {"output_stride": 8}),
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
    ("blocks.0.0.ghost1.primary_rpr_conv.0.conv.weight", (8, 16, 1, 1)),
    ("blocks.0.0.ghost1.primary_rpr_conv.0.bn1.weight", (8,)),
    ("blocks.0.0.ghost1.primary_rpr_conv.0.bn1.bias", (8,)),
    ("blocks.0.0.ghost1.primary_rpr_conv.0.bn1.running_var", (8,)),
    ("blocks.0.0.ghost1.cheap_rpr_skip.weight", (8,)),
    ("blocks.1.0.conv_pwl.weight", (24, 96, 1, 1)),
]


def fill(model: nn.Module, rename: Callable[[str], str] = lambda key: key) -> None:
    """Replaces everything in the model's state dict except the batch counters."""
    state = {
        key: torch.from_numpy(synthetic(rename(key), tuple(value.shape)))
        for key, value in model.state_dict().items()
        if key.rsplit(".", 1)[-1] != "num_batches_tracked"
    }
    result = model.load_state_dict(state, strict=False)
    left = [key for key in result.missing_keys if not key.endswith("num_batches_tracked")]
    assert not left and not result.unexpected_keys, (left, result.unexpected_keys)


def filled(name: str, **options: object) -> nn.Module:
    """timm's model with synthetic weights, ready for inference."""
    model = timm.create_model(name, pretrained=False, **options).eval()
    # As a list of features, timm names the blocks `blocks_S` where the whole network has `blocks.S`.
    fill(model, lambda key: re.sub(r"^blocks_(\d+)", r"blocks.\1", key))
    return model


def input_image(*shape: int) -> Tensor:
    return torch.from_numpy(synthetic("input", shape))


def watch_gates(model: nn.Module, gates: list[Tensor]) -> None:
    """Collects the sigmoid of every attention branch in `gates`."""
    for name, module in model.named_modules():
        # timm's placeholder in V3 has the same name but is not a branch.
        if name.endswith("short_conv") and isinstance(module, nn.Sequential):
            module.register_forward_hook(
                lambda _module, _inputs, output: gates.append(output.sigmoid().flatten())
            )


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def macs(model: nn.Module, image: Tensor) -> int:
    """Multiply-adds of the convolutions and the fully connected layers, for the first image of the batch."""
    total = 0

    def count(module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    handles = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    with torch.inference_mode():
        model(image[:1])
    for handle in handles:
        handle.remove()
    return total


def make_logits(tensors: dict[str, np.ndarray], counts: dict[str, dict[str, int]]) -> None:
    """The logits and the costs of the published networks."""
    for golden, name, size in GOLDENS:
        model = filled(name, num_classes=1000)
        gates: list[Tensor] = []
        watch_gates(model, gates)
        image = input_image(2, 3, size, size)
        with torch.inference_mode():
            logits = model(image)
            gate = torch.cat(gates) if gates else torch.empty(0)
            double = model.double()(image.double())
        assert logits.shape == (2, 1000) and logits.dtype == torch.float32
        tensors[golden] = logits.numpy()
        line = (
            f"{golden}: std {logits.std():.3f}, largest {logits.abs().max():.3f}, "
            f"between the two images {(logits[0] - logits[1]).abs().max():.3f}, "
            f"float32 against float64 {(logits.double() - double).abs().max():.2e}"
        )
        if gates:
            line += (
                f"; gates: mean {gate.mean():.3f}, std {gate.std():.3f}, "
                f"outside [0.01, 0.99] {((gate < 0.01) | (gate > 0.99)).double().mean():.2%}"
            )
        if name not in counts:
            # A new model, because converting to float64 and back does not restore the same float32 values.
            model, cost = filled(name, num_classes=1000), {}
            if name.startswith("ghostnetv3"):
                cost["training_parameters"] = parameters(model)
                model.convert_to_deploy()
                with torch.inference_mode():
                    merged = model(image)
                line += f"; merged branches move them by {(merged - logits).abs().max():.2e}"
            counts[name] = {"parameters": parameters(model), "macs": macs(model, image)} | cost
        print(line)


def make_features(tensors: dict[str, np.ndarray], shapes: dict[str, list[int]]) -> None:
    """Samples of intermediate feature maps."""

    def store(name: str, maps: Tensor) -> None:
        assert name not in tensors
        tensors[name] = maps.flatten()[::STEP].numpy().copy()
        shapes[name] = list(maps.shape)

    def store_cuts(prefix: str, name: str, image: Tensor, first: int) -> nn.Module:
        """The maps c`first` to c5, where timm cuts and at the last bottleneck of each stride."""
        with torch.inference_mode():
            for level, maps in enumerate(filled(name, features_only=True)(image), 1):
                if level >= first:
                    store(f"{prefix}.features.timm.c{level}", maps)
        model = filled(name, num_classes=1000)
        levels = dict(enumerate(DEEPEST[name], 1))
        handles = [
            # A copy: timm's activations work in place.
            model.blocks[stage].register_forward_hook(
                lambda _module, _inputs, output, level=level: store(
                    f"{prefix}.features.deepest.c{level}", output.clone()
                )
            )
            for level, stage in levels.items()
            if level >= first
        ]
        with torch.inference_mode():
            model(image)
        for handle in handles:
            handle.remove()
        return model

    # The first image of the logits' batch.
    image = input_image(2, 3, 224, 224)[:1]
    for name in DEEPEST:
        model = store_cuts(name, name, image, 1)
        if name == "ghostnetv2_100":
            for stage, blocks in enumerate(model.blocks):
                for index, block in enumerate(blocks):
                    layers = getattr(getattr(block, "ghost1", None), "short_conv", None)
                    if layers is not None:
                        layers.register_forward_hook(
                            lambda _module, _inputs, output, at=f"{stage}.{index}": store(
                                f"ghostnetv2_100.attention.{at}", output.sigmoid()
                            )
                        )
        with torch.inference_mode():
            embedding = model.forward_head(model.forward_features(image), pre_logits=True)
        tensors[f"{name}.embedding"] = embedding.numpy()
        print(f"{name}.embedding: std {embedding.std():.3f}, zero {(embedding == 0).double().mean():.0%}")
    store_cuts("ghostnetv2_100.320x416", "ghostnetv2_100", input_image(1, 3, 320, 416), 3)
    for name, shape in shapes.items():
        print(f"{name}: {shape}, std of the sample {tensors[name].std():.3f}")


def photograph(width: int, height: int) -> np.ndarray:
    """An image of 8-bit pixels, height × width × 3. The Rust tests draw the same one."""
    y, x, c = np.ogrid[:height, :width, :3]
    return ((x * 5 + y * 3 + c * 85 + (x // 16) * (y // 16) * 37) % 256).astype(np.uint8)


def make_served(tensors: dict[str, np.ndarray]) -> None:
    """The server's expected answers for images that need no resize: maps of both cuts, embeddings, gates, logits."""
    mean, std = (np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    backbone = filled("ghostnetv2_100", features_only=True)
    model = filled("ghostnetv2_100", num_classes=1000)
    found: dict[str, Tensor] = {}
    for level, stage in enumerate(DEEPEST["ghostnetv2_100"], 1):
        model.blocks[stage].register_forward_hook(
            lambda _module, _inputs, output, name=f"deepest.c{level}": found.update({name: output.clone()})
        )
    for stage, index in ((3, 0), (8, 3)):
        model.blocks[stage][index].ghost1.short_conv.register_forward_hook(
            lambda _module, _inputs, output, name=f"attention.{stage}.{index}": found.update(
                {name: output.sigmoid()}
            )
        )
    for width, height in ((224, 224), (416, 320), (640, 640)):
        pixels = photograph(width, height).astype(np.float32) / np.float32(255)
        image = torch.from_numpy(((pixels - mean) / std).transpose(2, 0, 1)[None].copy())
        with torch.inference_mode():
            for level, maps in enumerate(backbone(image), 1):
                found[f"timm.c{level}"] = maps
            features = model.forward_features(image)
            found["embedding"] = model.forward_head(features, pre_logits=True)
            found["logits"] = model.forward_head(features)
        for name, value in found.items():
            step = STEP if value.ndim == 4 else 1
            tensors[f"{width}x{height}.{name}"] = value.flatten()[::step].numpy().copy()


def check_reference() -> None:
    """Asserts that variants.py has timm's keys and timm's logits wherever timm has the network."""
    for base, ours, theirs in AGREEMENTS:
        reference = variants.build(variants.replace(variants.preset(base), **ours))
        fill(reference)
        model = filled(**({"name": base} | theirs))
        shapes = [{k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (reference, model)]
        assert shapes[0] == shapes[1], (base, ours, shapes[0].items() ^ shapes[1].items())
        # In float64, so that the order of V3's sums does not hide a real difference.
        image = input_image(2, ours.get("input_channels", 3), 96, 128).double()
        with torch.inference_mode():
            distance = (reference.double()(image) - model.double()(image)).abs().max().item()
        assert distance <= 1e-12, (base, ours, distance)
        print(f"reference {base} {ours or ''}: {distance:.1e} from timm")


def make_variants(tensors: dict[str, np.ndarray]) -> dict[str, dict]:
    """The logits of the ablations. Returns the input shape and the costs of each."""
    files = {path.stem: path for path in sorted((HERE / "variants").glob("*.toml"))}
    assert files.keys() == VARIANTS.keys(), files.keys() ^ VARIANTS.keys()
    descriptions = {}
    for name, (height, width) in VARIANTS.items():
        variant = variants.load(files[name])
        model = variants.build(variant)
        fill(model)
        image = input_image(2, variant.input_channels, height, width)
        with torch.inference_mode():
            logits = model(image)
        descriptions[name] = {"input": list(image.shape), "classes": variant.classes}
        if variant.family == "v3":
            # Costs describe the served network, which is not the training form.
            descriptions[name]["training_parameters"] = parameters(model)
        else:
            descriptions[name] |= {"parameters": parameters(model), "macs": macs(model, image)}
        with torch.inference_mode():
            double = model.double()(image.double())
        tensors[f"variant.{name}.logits"] = logits.numpy()
        print(
            f"variant.{name}.logits: std {logits.std():.3f}, largest {logits.abs().max():.3f}, "
            f"between the two images {(logits[0] - logits[1]).abs().max():.3f}, "
            f"float32 against float64 {(logits.double() - double).abs().max():.2e}"
        )
    return descriptions


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


def table(entries: dict, indent: str = "") -> str:
    """A JSON object with one entry per line, so that diffs are readable."""
    lines = ",\n".join(f"{indent} {json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items())
    return f"{{\n{lines}\n{indent}}}"


def main() -> None:
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, timm {timm.__version__}, numpy {np.__version__}, gain {GAIN}, branch {BRANCH}"
    )

    tensors: dict[str, np.ndarray] = {}
    counts: dict[str, dict[str, int]] = {}
    shapes: dict[str, list[int]] = {}
    make_logits(tensors, counts)
    make_features(tensors, shapes)
    check_reference()
    descriptions = make_variants(tensors)
    for name, cost in counts.items():
        print(name, cost)

    served: dict[str, np.ndarray] = {}
    make_served(served)
    (HERE / "served.safetensors").write_bytes(save(served))
    (HERE / "network.safetensors").write_bytes(save(tensors))
    (HERE / "features.json").write_text(
        f'{{\n "step": {STEP},\n "shapes": {table(shapes, " ")}\n}}\n', encoding="utf-8"
    )
    (HERE / "counts.json").write_text(f"{table(counts)}\n", encoding="utf-8")
    (HERE / "variants.json").write_text(f"{table(descriptions)}\n", encoding="utf-8")
    lines = ",\n".join("  " + json.dumps(spot(key, shape), ensure_ascii=False) for key, shape in SPOTS)
    (HERE / "synthetic.json").write_text(
        f'{{\n "gain": {GAIN},\n "values": [\n{lines}\n ]\n}}\n', encoding="utf-8"
    )


if __name__ == "__main__":
    main()
