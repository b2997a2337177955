"""Accuracy of a weights file on a folder tree or archive of labelled images.

    python evaluate.py --weights ../ghostnetv2-cifar10/weights.safetensors --data DATA

The pre-processing is timm's own evaluation transform (bicubic with antialiasing, centre crop,
ImageNet's mean and deviation) after the step down to the training images' 32 pixels.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from timm.data import create_transform
from torch import nn
from torchvision import transforms

from data import (
    CLASSES,
    INPUT_SIZE,
    MEAN,
    SOURCE_SIZE,
    STD,
    DataError,
    Sample,
    load_split,
    source_transform,
)
from model import DeviceError, WeightsError, load_weights, pick_device

BATCH_SIZE = 200


@dataclass(frozen=True)
class Scores:
    """Shares of right answers, 0 to 1."""

    images: int
    top1: float
    top5: float
    per_class: dict[str, float]
    """Top-1 among the images of each class, in the classes' order."""

    def __str__(self) -> str:
        rows = [f"{self.images} images: top-1 {self.top1:.2%}, top-5 {self.top5:.2%}"]
        rows += [f"  {name:<11}{share:7.2%}" for name, share in self.per_class.items()]
        return "\n".join(rows)


def evaluation_transform(source_size: int = SOURCE_SIZE) -> transforms.Compose:
    """What happens to a decoded image before the network.

    ``source_size`` 0 leaves out the step down to the training images' size.
    """
    # crop_pct 1: the shorter side goes straight to the input size. CIFAR-10's objects fill their
    # frames, so there is no border to give away.
    to_input = create_transform(
        input_size=(3, INPUT_SIZE, INPUT_SIZE),
        is_training=False,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
        crop_pct=1.0,
    )
    to_source = [source_transform(source_size)] if source_size else []
    return transforms.Compose([*to_source, to_input])


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    samples: list[Sample],
    device: torch.device = torch.device("cpu"),
    source_size: int = SOURCE_SIZE,
) -> Scores:
    """Classifies every sample, in fp32, and counts. The model must be in evaluation mode."""
    transform = evaluation_transform(source_size)
    images_of = torch.zeros(len(CLASSES), dtype=torch.long)
    right_of = torch.zeros(len(CLASSES), dtype=torch.long)
    in_top5 = 0
    for start in range(0, len(samples), BATCH_SIZE):
        batch = samples[start : start + BATCH_SIZE]
        images = torch.stack([transform(sample.decode()) for sample in batch])
        labels = torch.tensor([sample.label for sample in batch])
        inputs = images.to(device, memory_format=torch.channels_last)
        ranked = model(inputs).topk(5, dim=1).indices.cpu()
        hits = ranked == labels[:, None]
        in_top5 += int(hits.sum())
        images_of += labels.bincount(minlength=len(CLASSES))
        right_of += labels[hits[:, 0]].bincount(minlength=len(CLASSES))
    shares = (right_of / images_of).tolist()
    return Scores(
        images=len(samples),
        top1=int(right_of.sum()) / len(samples),
        top5=in_top5 / len(samples),
        per_class=dict(zip(CLASSES, shares, strict=True)),
    )


def main() -> int:
    """Parses the command line, evaluates, prints. Returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="a safetensors file")
    parser.add_argument(
        "--data", type=Path, required=True, help="a folder or archive that holds the test images"
    )
    parser.add_argument(
        "--source-size",
        type=int,
        default=SOURCE_SIZE,
        help="reduce images to this size first; 0 does not (default: %(default)s)",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        device = pick_device(args.device)
        model = load_weights(args.weights).to(device)
        scores = evaluate(model, load_split(args.data, "test"), device, args.source_size)
    except (DataError, DeviceError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(scores), indent=2) if args.json else scores)
    return 0


if __name__ == "__main__":
    sys.exit(main())
