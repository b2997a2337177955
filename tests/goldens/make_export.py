"""A small network that PyTorch exports as ONNX with its tensors in a second file, and PyTorch's probabilities.

Writes exported/. The network ends in a softmax; its pre-processing is torchvision's. Needs Python with
tests/clients/requirements-torch.txt.
"""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

HERE = Path(__file__).parent
OUT = HERE / "exported"
IMAGE = "jpeg-444.jpg"


def main() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 3),
        nn.Softmax(1),
    ).eval()
    with torch.no_grad():
        # Untrained, all images look alike: larger weights make the probabilities differ.
        for parameter in model.parameters():
            parameter.mul_(3.0)
    OUT.mkdir(exist_ok=True)
    torch.onnx.export(
        model,
        torch.zeros(1, 3, 64, 64),
        OUT / "net.onnx",
        input_names=["image"],
        output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    # The exporter notes the path of every source file on this machine.
    exported = onnx.load(OUT / "net.onnx", load_external_data=False)
    for part in [exported, exported.graph, *exported.graph.node, *exported.graph.value_info, *exported.graph.input]:
        del part.metadata_props[:]
    onnx.save(exported, OUT / "net.onnx")

    transform = transforms.Compose([
        transforms.Resize(73),
        transforms.CenterCrop(64),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])
    image = Image.open(HERE / "images" / IMAGE).convert("RGB")
    with torch.inference_mode():
        row = model(transform(image)[None])[0].tolist()
    (OUT / "expected.json").write_text(json.dumps({"image": IMAGE, "probabilities": row}) + "\n")


if __name__ == "__main__":
    main()
