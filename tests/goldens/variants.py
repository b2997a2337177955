"""The reference network of the ablations: GhostNet V1 to V3 and MobileNetV2, with every design choice as a parameter.

timm builds only the published networks. This module builds those and everything that a variant file can describe
(another width, attention elsewhere or of another kind, dilation instead of stride), under timm's keys and in
plain PyTorch. With the defaults it computes what timm computes, which `make_network.py` asserts.

A variant file is TOML, read by the Rust program as well; README.md lists its fields.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# One bottleneck per row: kernel, expanded channels, output channels, squeeze-excite, stride. One list per stage.
GHOST_STAGES: list[list[tuple[int, int, int, bool, int]]] = [
    [(3, 16, 16, False, 1)],
    [(3, 48, 24, False, 2)],
    [(3, 72, 24, False, 1)],
    [(5, 72, 40, True, 2)],
    [(5, 120, 40, True, 1)],
    [(3, 240, 80, False, 2)],
    [
        (3, 200, 80, False, 1),
        (3, 184, 80, False, 1),
        (3, 184, 80, False, 1),
        (3, 480, 112, True, 1),
        (3, 672, 112, True, 1),
    ],
    [(5, 672, 160, True, 2)],
    [(5, 960, 160, False, 1), (5, 960, 160, True, 1), (5, 960, 160, False, 1), (5, 960, 160, True, 1)],
]

# Repetitions, output channels, stride of the first repetition. Stage 0 has no expansion, the others sixfold.
MOBILE_STAGES: list[tuple[int, int, int]] = [
    (1, 16, 1),
    (2, 24, 2),
    (3, 32, 2),
    (4, 64, 2),
    (3, 96, 1),
    (3, 160, 2),
    (1, 320, 1),
]

# Number of parallel convolutions of the same shape that GhostNetV3 sums.
BRANCHES = 3


@dataclass(frozen=True)
class Dfc:
    """Position and design of the attention branch."""

    stages: tuple[int, ...] = ()
    kernel: int = 5
    kernels: dict[int, int] = field(default_factory=dict)
    enhance: str = "expanded"
    gate: str = "sigmoid"
    gate_at: str = "before"
    pool: str = "average"
    upsample: str = "nearest"

    def kernel_at(self, stage: int) -> int:
        return self.kernels.get(stage, self.kernel)

    def carries(self, stage: int, module: str) -> bool:
        """Whether the bottlenecks of `stage` carry attention on `module`, "expanded" or "output"."""
        return stage in self.stages and self.enhance in (module, "both")


@dataclass(frozen=True)
class Variant:
    """A network as data; the fields are those of a variant file."""

    family: str  # "v1", "v2", "v3" or "mobile"
    width: float = 1.0
    classes: int = 1000
    input_channels: int = 3
    output_stride: int = 32
    stem_channels: int = 16
    final_channels: int = 960
    head_features: int = 1280
    se_ratio: float = 0.25
    dfc: Dfc = Dfc()


CHOICES = {
    "enhance": ("expanded", "output", "both"),
    "gate": ("sigmoid", "hard_sigmoid", "clip"),
    "gate_at": ("before", "after"),
    "pool": ("average", "max"),
    "upsample": ("nearest", "bilinear", "bicubic"),
}


def preset(name: str) -> Variant:
    """The published network that timm calls `name`."""
    family, _, width = name.partition("_")
    families = {"ghostnet": "v1", "ghostnetv2": "v2", "ghostnetv3": "v3", "mobilenetv2": "mobile"}
    if family not in families or not width.isdigit():
        raise ValueError(f"unknown base {name!r}")
    variant = Variant(families[family], width=int(width) / 100)
    if variant.family in ("v2", "v3"):
        return replace(variant, dfc=Dfc(stages=tuple(range(2, len(GHOST_STAGES)))))
    if variant.family == "mobile":
        return replace(variant, stem_channels=32)
    return variant


def load(path: Path) -> Variant:
    """Reads a variant file; a field that the format does not have is an error."""
    text = tomllib.loads(path.read_text(encoding="utf-8"))
    variant = preset(text.pop("base"))
    attention = text.pop("dfc", {})
    allowed = {f.name for f in fields(Variant)} - {"family", "dfc"}
    if variant.family == "mobile":
        # It has neither a squeeze-excite nor a convolution between the last block and the head.
        allowed -= {"final_channels", "se_ratio"}
    unknown = set(text) - allowed | set(attention) - {f.name for f in fields(Dfc)}
    if unknown:
        raise ValueError(f"{path.name}: unknown {sorted(unknown)}")
    for name, choices in CHOICES.items():
        if attention.get(name, choices[0]) not in choices:
            raise ValueError(f"{path.name}: {name} must be one of {choices}")
    if "stages" in attention:
        attention["stages"] = tuple(attention["stages"])
    if "kernels" in attention:
        # A TOML key is a string even when it looks like a number.
        attention["kernels"] = {int(stage): kernel for stage, kernel in attention["kernels"].items()}
    dfc = replace(variant.dfc, **attention)
    if any(kernel % 2 == 0 for kernel in (dfc.kernel, *dfc.kernels.values())):
        raise ValueError(f"{path.name}: an even kernel has no centre")
    variant = replace(variant, **text, dfc=dfc)
    if variant.output_stride not in (8, 16, 32):
        raise ValueError(f"{path.name}: output_stride must be 8, 16 or 32")
    if variant.family == "mobile" and 0 in dfc.stages:
        raise ValueError(f"{path.name}: stage 0 of MobileNetV2 expands nothing, so there is nothing to attend to")
    return variant


def make_divisible(channels: float, divisor: int) -> int:
    """The nearest multiple of `divisor`, at least one, and at most a tenth smaller."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def conv(
    inputs: int, outputs: int, kernel: int | tuple[int, int] = 1, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    """A convolution that keeps the size except for its stride. It has no bias: a normalisation follows."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (dilation * (height // 2), dilation * (width // 2))
    return nn.Conv2d(inputs, outputs, (height, width), stride, padding, dilation, groups, bias=False)


class ConvBn(nn.Module):
    """timm's pair of `conv` and `bn1`."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.conv = layer
        self.bn1 = nn.BatchNorm2d(layer.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn1(self.conv(x))


def branch(inputs: int, outputs: int, kernel: int, dilation: int) -> nn.Sequential:
    """The layers of a DFC branch: pointwise, horizontal strip, vertical strip, each with its normalisation."""
    strip = {"dilation": dilation, "groups": outputs}
    return nn.Sequential(
        conv(inputs, outputs),
        nn.BatchNorm2d(outputs),
        conv(outputs, outputs, (1, kernel), **strip),
        nn.BatchNorm2d(outputs),
        conv(outputs, outputs, (kernel, 1), **strip),
        nn.BatchNorm2d(outputs),
    )


def gate(dfc: Dfc, x: Tensor) -> Tensor:
    """Turns a branch's result into factors between 0 and 1."""
    match dfc.gate:
        case "sigmoid":
            return x.sigmoid()
        case "hard_sigmoid":
            return (x / 6 + 0.5).clamp(0, 1)
        case _:
            return x.clamp(0, 1)


def attend(dfc: Dfc, layers: nn.Sequential, x: Tensor, maps: Tensor) -> Tensor:
    """`maps`, gated by the DFC branch `layers` on `x`, which has the same height and width."""
    pool = F.max_pool2d if dfc.pool == "max" else F.avg_pool2d
    attention = layers(pool(x, kernel_size=2, stride=2))
    if dfc.gate_at == "before":
        attention = gate(dfc, attention)
    corners = None if dfc.upsample == "nearest" else False
    attention = F.interpolate(attention, size=maps.shape[-2:], mode=dfc.upsample, align_corners=corners)
    if dfc.gate_at == "after":
        attention = gate(dfc, attention)
    return maps * attention


class Ghost(nn.Module):
    """The Ghost module of V1 and V2; the attention is optional."""

    def __init__(self, inputs: int, outputs: int, dilation: int, relu: bool, dfc: Dfc | None, kernel: int) -> None:
        super().__init__()
        half = math.ceil(outputs / 2)
        self.outputs, self.dfc = outputs, dfc
        self.activation = nn.ReLU() if relu else nn.Identity()
        self.primary_conv = nn.Sequential(conv(inputs, half), nn.BatchNorm2d(half))
        self.cheap_operation = nn.Sequential(
            conv(half, half, 3, dilation=dilation, groups=half), nn.BatchNorm2d(half)
        )
        if dfc is not None:
            self.short_conv = branch(inputs, outputs, kernel, dilation)

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        intrinsic = self.activation(self.primary_conv(x))
        return intrinsic, self.activation(self.cheap_operation(intrinsic))

    def forward(self, x: Tensor) -> Tensor:
        maps = torch.cat(self.halves(x), dim=1)[:, : self.outputs]
        return maps if self.dfc is None else attend(self.dfc, self.short_conv, x, maps)


class GhostV3(Ghost):
    """V3's Ghost module in training form: each layer is a sum of branches."""

    def __init__(self, inputs: int, outputs: int, dilation: int, relu: bool, dfc: Dfc | None, kernel: int) -> None:
        super().__init__(inputs, outputs, dilation, relu, dfc, kernel)
        del self.primary_conv, self.cheap_operation
        half = math.ceil(outputs / 2)
        cheap = {"dilation": dilation, "groups": half}
        self.primary_rpr_conv = nn.ModuleList(ConvBn(conv(inputs, half)) for _ in range(BRANCHES))
        self.cheap_rpr_skip = nn.BatchNorm2d(half)
        self.cheap_rpr_conv = nn.ModuleList(ConvBn(conv(half, half, 3, **cheap)) for _ in range(BRANCHES))
        self.cheap_rpr_scale = ConvBn(conv(half, half, groups=half))

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        intrinsic = self.activation(sum(layer(x) for layer in self.primary_rpr_conv))
        ghost = self.cheap_rpr_scale(intrinsic) + self.cheap_rpr_skip(intrinsic)
        return intrinsic, self.activation(ghost + sum(layer(intrinsic) for layer in self.cheap_rpr_conv))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, squeezed, 1)
        self.conv_expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)
        return x * F.hardsigmoid(self.conv_expand(self.conv_reduce(mean).relu()))


@dataclass(frozen=True)
class StridePlan:
    """A bottleneck's stride and dilations, after dilation has replaced stride beyond `output_stride`."""

    stride: int  # as executed
    strided: bool  # whether the table gives it a stride, and with it the layers of a strided block
    before: int  # dilation of the layers at its input's resolution
    after: int  # dilation of the layers behind the stride


class Strides:
    """Walks the bottlenecks in order and trades stride for dilation past `output_stride`."""

    def __init__(self, output_stride: int) -> None:
        self.limit = output_stride
        self.total = 2  # the stem
        self.dilation = 1

    def plan(self, stride: int) -> StridePlan:
        before = self.dilation
        if self.total * stride > self.limit:
            self.dilation *= stride
            return StridePlan(1, stride > 1, before, self.dilation)
        self.total *= stride
        return StridePlan(stride, stride > 1, before, before)


class Bottleneck(nn.Module):
    """A Ghost bottleneck: expand, stride, squeeze-excite, reduce, add the shortcut."""

    def __init__(
        self, variant: Variant, stage: int, inputs: int, row: tuple[int, int, int, bool, int], plan: StridePlan
    ) -> None:
        super().__init__()
        kernel, expanded, output, excite, _ = row
        expanded = make_divisible(expanded * variant.width, 4)
        outputs = make_divisible(output * variant.width, 4)
        dfc = variant.dfc
        ghost = GhostV3 if variant.family == "v3" else Ghost
        strip = dfc.kernel_at(stage)
        self.strided = plan.strided
        self.branches = variant.family == "v3"
        self.ghost1 = ghost(
            inputs, expanded, plan.before, True, dfc if dfc.carries(stage, "expanded") else None, strip
        )
        if plan.strided and self.branches:
            depthwise = {"stride": plan.stride, "groups": expanded}
            self.dw_rpr_conv = nn.ModuleList(
                ConvBn(conv(expanded, expanded, kernel, dilation=plan.before, **depthwise)) for _ in range(BRANCHES)
            )
            self.dw_rpr_scale = ConvBn(conv(expanded, expanded, **depthwise))
        elif plan.strided:
            self.conv_dw = conv(expanded, expanded, kernel, plan.stride, plan.before, expanded)
            self.bn_dw = nn.BatchNorm2d(expanded)
        squeezed = make_divisible(expanded * variant.se_ratio, 4)
        self.se = SqueezeExcite(expanded, squeezed) if excite else nn.Identity()
        self.ghost2 = ghost(
            expanded, outputs, plan.after, False, dfc if dfc.carries(stage, "output") else None, strip
        )
        self.shortcut: nn.Module = nn.Identity()
        if plan.strided or inputs != outputs:
            self.shortcut = nn.Sequential(
                conv(inputs, inputs, kernel, plan.stride, plan.before, inputs),
                nn.BatchNorm2d(inputs),
                conv(inputs, outputs),
                nn.BatchNorm2d(outputs),
            )
        self.out_channels = outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.ghost1(x)
        if self.strided and self.branches:
            y = self.dw_rpr_scale(y) + sum(layer(y) for layer in self.dw_rpr_conv)
        elif self.strided:
            y = self.bn_dw(self.conv_dw(y))
        return self.ghost2(self.se(y)) + self.shortcut(x)


class GhostNet(nn.Module):
    """GhostNet V1, V2 and V3."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        channels = make_divisible(variant.stem_channels * variant.width, 4)
        self.conv_stem = conv(variant.input_channels, channels, 3, 2)
        self.bn1 = nn.BatchNorm2d(channels)
        strides = Strides(variant.output_stride)
        stages: list[nn.Module] = []
        for stage, rows in enumerate(GHOST_STAGES):
            blocks = []
            for row in rows:
                blocks.append(Bottleneck(variant, stage, channels, row, strides.plan(row[-1])))
                channels = blocks[-1].out_channels
            stages.append(nn.Sequential(*blocks))
        final = make_divisible(variant.final_channels * variant.width, 4)
        stages.append(nn.Sequential(ConvBn(conv(channels, final)), nn.ReLU()))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(final, variant.head_features, 1)
        self.classifier = nn.Linear(variant.head_features, variant.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.bn1(self.conv_stem(x)).relu())
        x = self.conv_head(x.mean((2, 3), keepdim=True)).relu()
        return self.classifier(x.flatten(1))


class Separable(nn.Module):
    """MobileNetV2's first block: depthwise, then pointwise without an activation."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv_dw = conv(inputs, inputs, 3, groups=inputs)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv_pw = conv(inputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.residual = inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x)))))
        return x + y if self.residual else y


class Inverted(nn.Module):
    """MobileNetV2's inverted residual; the attention gates the expanded maps, the projected ones, or both."""

    def __init__(self, dfc: Dfc, stage: int, inputs: int, outputs: int, plan: StridePlan) -> None:
        super().__init__()
        expanded = make_divisible(inputs * 6, 8)
        self.dfc = dfc
        self.conv_pw = conv(inputs, expanded)
        self.bn1 = nn.BatchNorm2d(expanded)
        self.conv_dw = conv(expanded, expanded, 3, plan.stride, plan.before, expanded)
        self.bn2 = nn.BatchNorm2d(expanded)
        self.conv_pwl = conv(expanded, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        # The strips are not dilated: here only the depthwise convolutions replace stride by dilation.
        strip = dfc.kernel_at(stage)
        self.short_conv = branch(inputs, expanded, strip, 1) if dfc.carries(stage, "expanded") else None
        self.short_conv_out = branch(expanded, outputs, strip, 1) if dfc.carries(stage, "output") else None
        self.residual = inputs == outputs and not plan.strided

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu6(self.bn1(self.conv_pw(x)))
        if self.short_conv is not None:
            wide = attend(self.dfc, self.short_conv, x, wide)
        wide = F.relu6(self.bn2(self.conv_dw(wide)))
        y = self.bn3(self.conv_pwl(wide))
        if self.short_conv_out is not None:
            y = attend(self.dfc, self.short_conv_out, wide, y)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    def __init__(self, variant: Variant) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return make_divisible(channels * variant.width, 8)

        channels = scaled(variant.stem_channels)
        self.conv_stem = conv(variant.input_channels, channels, 3, 2)
        self.bn1 = nn.BatchNorm2d(channels)
        strides = Strides(variant.output_stride)
        stages = []
        for stage, (repeats, output, stride) in enumerate(MOBILE_STAGES):
            blocks: list[nn.Module] = []
            for repeat in range(repeats):
                plan = strides.plan(stride if repeat == 0 else 1)
                blocks.append(
                    Separable(channels, scaled(output))
                    if stage == 0
                    else Inverted(variant.dfc, stage, channels, scaled(output), plan)
                )
                channels = scaled(output)
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        # A narrow network keeps the full head; a wide network has a wider head.
        features = max(variant.head_features, scaled(variant.head_features))
        self.conv_head = conv(channels, features)
        self.bn2 = nn.BatchNorm2d(features)
        self.classifier = nn.Linear(features, variant.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu6(self.bn1(self.conv_stem(x))))
        x = F.relu6(self.bn2(self.conv_head(x)))
        return self.classifier(x.mean((2, 3)))


def build(variant: Variant) -> nn.Module:
    """The network, ready for inference, with PyTorch's initial weights."""
    return (MobileNetV2 if variant.family == "mobile" else GhostNet)(variant).eval()
