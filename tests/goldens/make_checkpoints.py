"""Writes crates/weights/tests/checkpoints/: small torch.save files in the common forms of weights, and their content.

`expected.safetensors` has `<file>/<key>` for every tensor that a reader should find, as float32 under timm's name,
read back by PyTorch. The values come from `synthetic.py`, so that a test notices swapped tensors. `malicious.pth`
would run a command when loaded without `weights_only`; the command is `true`.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from timm.models.ghostnet import checkpoint_filter_fn
from torch import nn

from synthetic import synthetic

OUT = Path(__file__).resolve().parents[2] / "crates/weights/tests/checkpoints"


def tensor(key: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(synthetic(key, shape))


def network() -> nn.Module:
    """A convolution, its batch norm and a classifier, with synthetic values."""
    net = nn.Sequential(OrderedDict(conv=nn.Conv2d(2, 3, 1, bias=False), bn=nn.BatchNorm2d(3), fc=nn.Linear(3, 2)))
    state = net.state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            value.copy_(tensor(key, *value.shape))
    return net


def trained() -> dict:
    """What training scripts save: the network after one step, the optimizer, and the progress."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])
    net.fc(net.bn(net.conv(tensor("input", 2, 2, 4, 4))).mean((2, 3))).square().sum().backward()
    optimizer.step()
    schedule.step()
    return {
        "epoch": 7,
        "arch": "ghostnetv2",
        "args": argparse.Namespace(lr=0.1, size=(224, 224), resume=None, betas=[0.9, 0.999]),
        "state_dict": net.state_dict(),
        "state_dict_ema": {key: value + 1 for key, value in net.state_dict().items()},
        "best_prec1": torch.tensor(75.5),
        "best_acc": np.float64(75.5),
        "seed": 2**63,
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
    }


def parameters() -> dict:
    plain, marked = nn.Parameter(tensor("plain.weight", 2, 3)), nn.Parameter(tensor("marked.weight", 4))
    marked.note = "attributes of a parameter"
    attached = tensor("attached.weight", 2)
    attached.note = "attributes of a tensor"
    return {"plain.weight": plain, "marked.weight": marked, "attached.weight": attached}


def views() -> dict:
    base = tensor("base.weight", 4, 6)
    return {
        "base": base,
        "transposed": base.t(),
        "columns": base[:, 1:4],
        "every_other": base[1::2, ::3],
        "permuted": tensor("cube.weight", 2, 3, 4).permute(2, 0, 1),
        "tail": base.view(-1)[20:],
        "scalar": base[2, 3],
        "repeated": base[1, :2, None].expand(2, 3),
        "channels_last": tensor("image.weight", 2, 3, 2, 2).to(memory_format=torch.channels_last),
        "empty": base[:0],
        "same": base,
    }


def types() -> dict:
    value = tensor("types.weight", 2, 5)
    names = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    floats = {name: value.to(dtype) for name, dtype in names.items()}
    return floats | {"i64": torch.tensor(3), "i32": torch.zeros(2, dtype=torch.int32),
                     "bool": torch.zeros(3, dtype=torch.bool), "u16": torch.zeros(2, dtype=torch.uint16)}


def authors() -> dict:
    """The names of the authors' GhostNetV3, with the buffers that thop adds to them."""
    keys = ["conv_stem.weight"]
    for branch in ["ghost1.primary_rpr_conv.0", "ghost2.cheap_rpr_conv.2", "ghost1.cheap_rpr_scale", "dw_rpr_conv.1",
                   "dw_rpr_scale"]:
        keys += [f"blocks.0.0.{branch}.conv.weight", f"blocks.0.0.{branch}.bn.weight"]
    keys += ["blocks.0.0.ghost1.cheap_rpr_skip.weight", "blocks.0.0.dw_rpr_skip.weight", "bn1.weight"]
    state = OrderedDict((key, tensor(key, 3)) for key in keys)
    for module in ["", "conv_stem.", "blocks.0.0.ghost1."]:
        state[f"{module}total_ops"] = torch.zeros(1, dtype=torch.float64)
        state[f"{module}total_params"] = torch.zeros(1, dtype=torch.float64)
    return {"state_dict": state}


class Command:
    """Pickled as a call of os.system."""

    def __reduce__(self):
        return os.system, ("true",)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    state = network().state_dict()
    files = {
        "plain.pth": (state, 2),
        "protocol5.bin": (state, 5),
        "training.pth.tar": (trained(), 2),
        "training4.pth.tar": (trained(), 4),
        "averaged.pth": ({"model_ema": {"fc.bias": state["fc.bias"]}, "epoch": 1}, 2),
        "parallel.pth": ({"model": nn.DataParallel(network()).state_dict()}, 2),
        "parameters.pt": (parameters(), 2),
        "views.pth": (views(), 2),
        "types.pth": (types(), 2),
        "authors.pth.tar": (authors(), 2),
    }
    expected = {}
    for name, (content, protocol) in files.items():
        torch.save(content, OUT / name, pickle_protocol=protocol)
        # weights_only=False is safe for our own files. They contain a namespace and NumPy scalars beside the weights.
        loaded = torch.load(OUT / name, weights_only=False)
        for wrapper in ["state_dict", "model", "state_dict_ema", "model_ema"]:
            loaded = loaded.get(wrapper, loaded)
        if all(key.startswith("module.") for key in loaded):
            loaded = {key.removeprefix("module."): value for key, value in loaded.items()}
        for key, value in checkpoint_filter_fn(loaded, None).items():
            expected[f"{name}/{key}"] = value.detach().float().contiguous().clone()
    (OUT / "expected.safetensors").write_bytes(save(expected))

    # Files that a reader refuses.
    torch.save({"state_dict": {"fc.bias": state["fc.bias"]}, "extra": Command()}, OUT / "malicious.pth")
    torch.save(nn.ReLU(), OUT / "whole.pth")
    torch.save(state, OUT / "legacy.pth", _use_new_zipfile_serialization=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(1, 1)), OUT / "script.pt")

    for path in sorted(OUT.iterdir()):
        print(f"{path.stat().st_size:7d}  {path.name}")


if __name__ == "__main__":
    main()
