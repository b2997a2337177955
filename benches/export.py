"""Exports one of timm's models to ONNX as PyTorch's documentation shows, without manual changes.

The result is the file that one would serve without this project: the baseline of the benchmarks. The weights are the
synthetic ones of the goldens: the time of a forward pass does not depend on trained values, and nothing has to be
downloaded. The batch axis is dynamic and called "batch". The script checks the written file and compares its results
with PyTorch's.

    python export.py --name ghostnetv2_100 --out target/bench --size 224 --exporter dynamo
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import timm
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "goldens"))

from synthetic import synthetic  # noqa: E402

# Largest absolute difference of the logits, which are of order 1.
TOLERANCE = 1e-4


def build(name: str) -> torch.nn.Module:
    """timm's model with synthetic weights, ready for inference; V3 with its branches merged."""
    model = timm.create_model(name, pretrained=False).eval()
    state = {
        key: value if key.endswith("num_batches_tracked") else torch.from_numpy(synthetic(key, tuple(value.shape)))
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    if hasattr(model, "convert_to_deploy"):
        # Has no effect on versions without branches.
        model.convert_to_deploy()
    return model


def export(model: torch.nn.Module, image: torch.Tensor, path: Path, exporter: str) -> None:
    """Writes `path` as a single file, with PyTorch's default exporter or with the older tracing one."""
    names = {"input_names": ["input"], "output_names": ["logits"]}
    if exporter == "dynamo":
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(
            model, (image,), str(path), dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False, **names
        )
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            axes = {"input": {0: "batch"}, "logits": {0: "batch"}}
            torch.onnx.export(model, (image,), str(path), dynamo=False, dynamic_axes=axes, **names)


def check(model: torch.nn.Module, path: Path, size: int) -> tuple[str, float]:
    """Returns a summary of the graph and the largest difference of its logits from PyTorch's."""
    graph = onnx.load(path)
    onnx.checker.check_model(graph, full_check=True)
    axis = graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert axis == "batch", f"the batch axis is called {axis!r}"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    difference = 0.0
    # Includes batch sizes that were not traced.
    for batch in (1, 2, 3):
        image = synthetic("input", (batch, 3, size, size))
        (ours,) = session.run(None, {"input": image})
        with torch.inference_mode():
            theirs = model(torch.from_numpy(image)).numpy()
        difference = max(difference, float(np.abs(ours - theirs).max()))
    opset = next(entry.version for entry in graph.opset_import if entry.domain == "")
    return f"opset {opset}, {len(graph.graph.node)} nodes, {path.stat().st_size} bytes", difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="ghostnetv2_100", help="name of the model in timm")
    parser.add_argument("--out", type=Path, default=Path("target/bench"), help="output folder; the file is NAME.onnx")
    parser.add_argument("--size", type=int, default=224, help="height and width of the input, pixels")
    parser.add_argument("--exporter", choices=("dynamo", "legacy"), default="dynamo", help="dynamo: PyTorch's default")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{arguments.name}.onnx"
    model = build(arguments.name)
    # Two images: PyTorch's exporter may treat a batch of one as a constant.
    image = torch.from_numpy(synthetic("input", (2, 3, arguments.size, arguments.size)))
    export(model, image, path, arguments.exporter)
    summary, difference = check(model, path, arguments.size)
    print(f"{path}: {arguments.exporter}, {summary}, largest difference from PyTorch {difference:.1e}")
    if not difference <= TOLERANCE:
        sys.exit(f"the exported network differs from PyTorch by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
