"""Trains GhostNetV2 1.0 from scratch on CIFAR-10 and exports what the server loads.

    python train.py --data DATA                       29 epochs
    python train.py --data DATA --minutes 100         as much as fits in the time
    python train.py --data DATA --resume              go on from the last checkpoint

DATA is a folder with ``train/<class>/*.jpg`` and ``test/<class>/*.jpg``, or with a tar archive of
each. See README.md for what to expect.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import nn

from augment import AugmentConfig, augment
from data import DataError, Sample, decode_all, load_split
from evaluate import evaluate
from manifest import ManifestError, check_manifest, set_digest
from model import (
    DeviceError,
    MovingAverage,
    WeightsError,
    build_model,
    export_fp16,
    load_weights,
    pick_device,
)

CHECKPOINT = "checkpoint.pt"


class TrainingError(Exception):
    """Training cannot start or go on. The message is meant for the user."""


@dataclass(frozen=True)
class Recipe:
    """Every choice that decides the result, apart from the data and the budget."""

    seed: int = 0
    batch_size: int = 128
    drop_rate: float = 0.1
    peak_lr: float = 0.15
    final_lr: float = 1e-4
    warmup: float = 0.06
    """Share of the budget over which the learning rate rises."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    average_decay: float = 0.999
    average_every: int = 2
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def learning_rate(self, progress: float) -> float:
        """A linear warm-up, then half a cosine down; ``progress`` is the share of the budget
        already spent, so that the schedule is the same for epochs and for minutes.
        """
        rise = min(1.0, progress / self.warmup + 0.02)
        beyond = max(0.0, progress - self.warmup) / (1 - self.warmup)
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, beyond)))
        return self.peak_lr * rise * fall + self.final_lr


@dataclass(frozen=True)
class Budget:
    """When training is done: after ``minutes`` if given, otherwise after ``epochs``."""

    epochs: int = 29
    minutes: float | None = None

    def progress(self, step: int, steps_per_epoch: int, seconds: float) -> float:
        """The share spent; at 1 or above training is over."""
        if self.minutes is not None:
            return seconds / (60 * self.minutes)
        return step / (steps_per_epoch * self.epochs)


class Training:
    """The state of a run: network, average, optimiser, and how far it has come."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(derive_seed(recipe.seed, "initialisation"))
        self.recipe = recipe
        self.device = device
        self.model = build_model(recipe.drop_rate).to(device)
        self.average = MovingAverage(self.model, recipe.average_decay, recipe.average_every)
        self.optimizer = build_optimizer(self.model, recipe)
        self.step = 0
        self.seconds = 0.0

    def train_step(
        self, pixels: torch.Tensor, labels: torch.Tensor, learning_rate: float
    ) -> torch.Tensor:
        """One update from uint8 ``pixels``; returns the batch's loss, still on the device."""
        # Seeds come from the step's number alone: a resumed run draws what an uninterrupted
        # one would have drawn, and no generator state has to be saved.
        torch.manual_seed(derive_seed(self.recipe.seed, "dropout", self.step))
        generator = torch.Generator()
        generator.manual_seed(derive_seed(self.recipe.seed, "augment", self.step))

        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        inputs = augment(pixels.to(self.device), self.recipe.augment, generator)
        loss = F.cross_entropy(
            self.model(inputs),
            labels.to(self.device),
            label_smoothing=self.recipe.label_smoothing,
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.step += 1
        self.average.update(self.step)
        return loss.detach()

    def save(self, path: Path, plan: dict[str, object]) -> None:
        """Writes a checkpoint whole or not at all. ``plan`` is what a resumed run must share."""
        partial = path.with_name(path.name + ".part")
        torch.save(
            {
                "plan": plan,
                "step": self.step,
                "seconds": self.seconds,
                "model": self.model.state_dict(),
                "average": self.average.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
            partial,
        )
        os.replace(partial, path)

    def restore(self, path: Path, plan: dict[str, object]) -> None:
        """Goes on from a checkpoint of the same plan.

        Raises:
            TrainingError: there is no such file, or it was made with other settings.
        """
        if not path.is_file():
            raise TrainingError(f"there is no checkpoint to resume from at {path}")
        saved = torch.load(path, map_location=self.device, weights_only=True)
        if differing := [key for key in plan if saved["plan"].get(key) != plan[key]]:
            changes = "; ".join(f"{k}: {saved['plan'].get(k)} → {plan[k]}" for k in differing)
            raise TrainingError(f"{path} was made with other settings ({changes})")
        self.model.load_state_dict(saved["model"])
        self.average.model.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]
        self.seconds = saved["seconds"]


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A seed for one purpose and one moment. Hashed, so that neighbours are unrelated."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD with Nesterov momentum. Batch-norm parameters and biases (one dimension) are not
    decayed: pulling them to zero restrains nothing that the weights could not undo.
    """
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.SGD(
        [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ],
        lr=recipe.peak_lr,
        momentum=recipe.momentum,
        nesterov=True,
    )


def epoch_order(seed: int, epoch: int, count: int) -> torch.Tensor:
    """The order of the training images in one epoch."""
    generator = torch.Generator()
    generator.manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(count, generator=generator)


@dataclass(frozen=True)
class Hooks:
    """What happens beside the training itself, and how often, in steps."""

    log: Callable[[str], None] = print
    log_every: int = 100
    checkpoint: Callable[[], None] = lambda: None
    checkpoint_every: int | None = None
    """None: once an epoch."""
    accuracy: Callable[[], float] | None = None
    accuracy_every_epochs: int = 5


def run(
    training: Training,
    pixels: torch.Tensor,
    labels: torch.Tensor,
    budget: Budget,
    hooks: Hooks = Hooks(),
    stop_after: int | None = None,
) -> bool:
    """Trains until the budget is spent (True), or until step ``stop_after`` (False).

    Raises:
        TrainingError: there is not one full batch, or the loss is no longer finite.
    """
    recipe = training.recipe
    # The rest of an epoch that does not fill a batch is left out: the order is new each epoch.
    steps_per_epoch = len(labels) // recipe.batch_size
    if steps_per_epoch == 0:
        raise TrainingError(f"{len(labels)} images are fewer than one batch of {recipe.batch_size}")
    checkpoint_every = hooks.checkpoint_every or steps_per_epoch

    # Seconds of earlier sittings count towards --minutes, so a resumed run keeps its schedule.
    started = time.monotonic() - training.seconds
    order, order_epoch = torch.empty(0), -1
    losses: list[torch.Tensor] = []
    while (progress := budget.progress(training.step, steps_per_epoch, training.seconds)) < 1:
        if stop_after is not None and training.step >= stop_after:
            return False
        epoch, batch = divmod(training.step, steps_per_epoch)
        if epoch != order_epoch:
            order, order_epoch = epoch_order(recipe.seed, epoch, len(labels)), epoch
        chosen = order[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
        learning_rate = recipe.learning_rate(progress)
        losses.append(training.train_step(pixels[chosen], labels[chosen], learning_rate))
        training.seconds = time.monotonic() - started

        epoch_ends = training.step % steps_per_epoch == 0
        if epoch_ends or training.step % hooks.log_every == 0:
            loss = torch.stack(losses).mean().item()
            losses.clear()
            hooks.log(
                f"epoch {epoch + 1} step {training.step} {training.seconds:.0f} s "
                f"({progress:.1%}) loss {loss:.4f} lr {learning_rate:.4f}"
            )
            if not math.isfinite(loss):
                raise TrainingError(f"the loss is {loss} at step {training.step}")
        if training.step % checkpoint_every == 0:
            hooks.checkpoint()
        if hooks.accuracy and epoch_ends and (epoch + 1) % hooks.accuracy_every_epochs == 0:
            hooks.log(f"epoch {epoch + 1}: test accuracy of the average {hooks.accuracy():.2%}")
    return True


def finish(training: Training, test: list[Sample], args: argparse.Namespace) -> None:
    """Exports the average, measures it before and after rounding to fp16, writes the report."""
    export = args.export or args.output / "weights.safetensors"
    sha256 = export_fp16(training.average.model, export)
    full = evaluate(training.average.model, test, training.device)
    # The exported file is read back, so the figure is that of the very file that is shipped.
    half = evaluate(load_weights(export).to(training.device), test, training.device)
    if args.manifest:
        set_digest(args.manifest, sha256)
    report = {
        "weights": export.name,
        "digest": f"sha256:{sha256}",
        "steps": training.step,
        "minutes": round(training.seconds / 60, 1),
        "device": training.device.type,
        "torch": torch.__version__,
        "timm": timm.__version__,
        "recipe": asdict(training.recipe),
        "fp32": asdict(full),
        "fp16": asdict(half),
    }
    (args.output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"fp32 weights: {full}\nfp16 weights: {half}\n{export} sha256:{sha256}")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; see ``--help``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with train and test, or their archives"
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--epochs", type=count, default=Budget.epochs, help="default: %(default)s")
    budget.add_argument("--minutes", type=duration, help="train for this long instead")
    parser.add_argument("--seed", type=int, default=Recipe.seed, help="default: %(default)s")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/latest"),
        help="folder for checkpoint, weights and report (default: %(default)s)",
    )
    parser.add_argument("--export", type=Path, help="weights file (default: in the output folder)")
    parser.add_argument("--manifest", type=Path, help="manifest whose digest is to be updated")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--stop-after", type=count, metavar="STEP", help="pause there, to resume")
    parser.add_argument(
        "--checkpoint-every", type=count, metavar="STEPS", help="default: once an epoch"
    )
    parser.add_argument(
        "--evaluate-every", type=count, metavar="EPOCHS", default=5, help="default: %(default)s"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=count, help="CPU threads (default: PyTorch's choice)")
    return parser.parse_args(argv)


def count(text: str) -> int:
    """A command-line number of 1 or more."""
    if (value := int(text)) < 1:
        raise ValueError
    return value


def duration(text: str) -> float:
    """A command-line number above 0."""
    if not 0 < (value := float(text)) < math.inf:
        raise ValueError
    return value


def train(args: argparse.Namespace) -> None:
    """A whole run, from data to report.

    Raises:
        DataError, DeviceError, ManifestError, TrainingError, WeightsError: each with a message
            for the user.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    # On a GPU the fastest kernels are not always the repeatable ones.
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True

    device = pick_device(args.device)
    checkpoint = args.output / CHECKPOINT
    if checkpoint.exists() and not args.resume:
        raise TrainingError(
            f"{checkpoint} exists: give --resume to go on from it, or another --output"
        )
    if args.manifest:
        check_manifest(args.manifest)
    # All data before the first step: a broken test image must not cost a night's training.
    train_samples, test_samples = load_split(args.data, "train"), load_split(args.data, "test")
    pixels, labels = decode_all(train_samples)
    for sample in test_samples:
        sample.decode()
    print(f"{len(labels)} training and {len(test_samples)} test images, on {device}", flush=True)

    recipe = Recipe(seed=args.seed)
    budget = Budget(args.epochs, args.minutes)
    plan = {"recipe": asdict(recipe), "budget": asdict(budget), "images": len(labels)}
    training = Training(recipe, device)
    if args.resume:
        training.restore(checkpoint, plan)
        print(f"resumed at step {training.step}", flush=True)
    args.output.mkdir(parents=True, exist_ok=True)

    def log(line: str) -> None:
        print(line, flush=True)

    hooks = Hooks(
        log=log,
        checkpoint=lambda: training.save(checkpoint, plan),
        checkpoint_every=args.checkpoint_every,
        # Watched, never acted on: the last average is what is exported, whichever was best.
        accuracy=lambda: evaluate(training.average.model, test_samples, device).top1,
        accuracy_every_epochs=args.evaluate_every,
    )
    finished = run(training, pixels, labels, budget, hooks, args.stop_after)
    training.save(checkpoint, plan)
    if finished:
        finish(training, test_samples, args)
    else:
        log(f"paused at step {training.step}; go on with --resume")


def main() -> int:
    """Runs and returns the exit code."""
    try:
        train(parse_args())
    except (DataError, DeviceError, ManifestError, TrainingError, WeightsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
