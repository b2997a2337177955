"""Writes a GhostServe model folder with the same weights as an exported ONNX file.

export.py fills GhostNetV2 with synthetic values that depend on the tensors' names (tests/goldens/synthetic.py).
PyTorch's exporter folds batch normalisations into the convolutions, but keeps the names and shapes of the convolutions'
weights; the names of all other tensors follow from these. GhostServe refuses missing keys, extra keys and wrong shapes,
and compare.py checks that all servers give the same answers.

    python benches/peers/model.py --onnx target/bench/ghostnetv2_100.onnx --out target/bench/ghostnetv2_100
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import sys
from pathlib import Path

import onnx
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "goldens"))

from synthetic import synthetic  # noqa: E402

MANIFEST = """\
# Written by benches/peers/model.py: synthetic weights, for benchmarks only.
id = "{name}-synthetic"

[network]
architecture = "{name}"
weights = "weights.safetensors"
digest = "sha256:{digest}"
output = "logits"

[input]
size = [224, 224]
resize = 256
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]

[labels]
file = "labels.txt"
"""


def normalisation(convolution: str) -> str | None:
    """Returns the name of the batch normalisation after a convolution, or None."""
    if convolution == "conv_stem":
        return "bn1"
    parent, _, last = convolution.rpartition(".")
    if last == "conv_dw":
        return f"{parent}.bn_dw"
    if last == "conv":
        return f"{parent}.bn1"
    # In a sequence, the normalisation is the next element.
    if re.fullmatch(r"\d+", last):
        return f"{parent}.{int(last) + 1}"
    return None


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of the network's parameters before the export."""
    found = {}
    for tensor in onnx.load(path).graph.initializer:
        # The others are constants, or biases that result from folding (`….weight_bias`).
        if not tensor.name.endswith((".weight", ".bias")):
            continue
        found[tensor.name] = tuple(tensor.dims)
        layer = normalisation(tensor.name[: -len(".weight")]) if tensor.name.endswith(".weight") else None
        if layer:
            for part in ("weight", "bias", "running_mean", "running_var"):
                found[f"{layer}.{part}"] = (tensor.dims[0],)
    return found


def write(network: Path, folder: Path) -> None:
    """Writes the three files of the model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "weights.safetensors"
    save_file({key: synthetic(key, shape) for key, shape in shapes(network).items()}, weights)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    manifest = MANIFEST.format(name=network.name.split(".")[0], digest=digest)
    (folder / "manifest.toml").write_text(manifest, encoding="utf-8")
    shutil.copyfile(ROOT / "models" / "imagenet-1k" / "labels.txt", folder / "labels.txt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--onnx", type=Path, required=True, help="export.py's file, from its default exporter")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    arguments = parser.parse_args()
    write(arguments.onnx, arguments.out)


if __name__ == "__main__":
    main()
