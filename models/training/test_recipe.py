"""Smoke test of the recipe on a tiny made-up data set: under a minute on one CPU core.

Run it with ``python -m unittest test_recipe``; pytest finds it too.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import tempfile
import unittest
import unittest.mock
from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

import train as training_script
from augment import AugmentConfig, augment, cutout, random_affine
from data import CLASSES, INPUT_SIZE, DataError, decode_all, load_split
from evaluate import evaluate, evaluation_transform
from manifest import ManifestError, check_manifest, set_digest
from model import MovingAverage, WeightsError, build_model, export_fp16, load_weights
from train import Budget, Hooks, Recipe, Training, TrainingError, build_optimizer, run

NO_AUGMENTATION = AugmentConfig(
    zoom=(1.0, 1.0),
    log_aspect=0.0,
    translate=0.0,
    flip=0.0,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
    cutout=0.0,
)
QUIET = Hooks(log=lambda line: None)
CPU = torch.device("cpu")


def make_data(root: Path, train_per_class: int, test_per_class: int) -> None:
    """Noisy single-colour JPEGs, a colour a class: learnable from one batch."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (len(CLASSES), 1, 1, 3))
    for split, count in (("train", train_per_class), ("test", test_per_class)):
        for name, colour in zip(CLASSES, colours, strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                noise = rng.integers(-40, 41, (32, 32, 3))
                pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index:04}.jpg")


class Case(unittest.TestCase):
    """A temporary folder with the data set in it, one a test class."""

    train_per_class = 2
    test_per_class = 1

    @classmethod
    def setUpClass(cls) -> None:
        torch.set_num_threads(1)
        temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(temporary.cleanup)
        cls.folder = Path(temporary.name)
        cls.data = cls.folder / "data"
        make_data(cls.data, cls.train_per_class, cls.test_per_class)


class DataTest(Case):
    def archive(self, name: str, *splits: str) -> Path:
        path = self.folder / name / "images-test.tar.xz"
        path.parent.mkdir()
        with tarfile.open(path, "w:xz") as tar:
            for split in splits:
                tar.add(self.data / split, split)
        return path

    def test_a_folder_and_an_archive_give_the_same_samples(self) -> None:
        expected = load_split(self.data, "test")
        self.assertEqual([sample.label for sample in expected], list(range(10)))
        self.assertEqual(load_split(self.data / "test", "test"), expected)
        archive = self.archive("alone", "test")
        self.assertEqual(load_split(archive, "test"), expected)
        self.assertEqual(load_split(archive.parent, "test"), expected)

    def test_an_archive_of_both_splits_yields_the_one_asked_for(self) -> None:
        archive = self.archive("both", "test", "train")
        self.assertEqual(load_split(archive, "test"), load_split(self.data, "test"))
        self.assertEqual(load_split(archive, "train"), load_split(self.data, "train"))

    def test_what_is_missing_is_named(self) -> None:
        empty = self.folder / "empty"
        (empty / "test" / "cat").mkdir(parents=True)
        text = self.folder / "notes.txt"
        text.write_text("not an archive")
        broken = self.folder / "broken-test.tar.xz"
        broken.write_bytes(b"not an archive either")
        for location, message in (
            (self.folder / "absent", "does not exist"),
            (empty / "test" / "cat", "holds no test images"),
            (empty, "expected test/<class>"),
            (text, "neither a folder nor a tar archive"),
            (broken, "cannot be read as a tar archive"),
        ):
            with self.subTest(location.name), self.assertRaisesRegex(DataError, message):
                load_split(location, "test")

    def test_classes_must_be_the_ten(self) -> None:
        root = self.folder / "classes"
        make_data(root, 1, 1)
        (root / "test" / "cat" / "0000.jpg").unlink()
        with self.assertRaisesRegex(DataError, "no images of: cat"):
            load_split(root, "test")
        (root / "train" / "cat").rename(root / "train" / "lynx")
        with self.assertRaisesRegex(DataError, "does not know: lynx"):
            load_split(root, "train")

    def test_a_broken_image_is_named(self) -> None:
        root = self.folder / "images"
        make_data(root, 1, 1)
        (root / "test" / "dog" / "0000.jpg").write_bytes(b"\xff\xd8 cut short")
        with self.assertRaisesRegex(DataError, "dog/0000.jpg"):
            decode_all(load_split(root, "test"))

    def test_labels_file_of_the_shipped_model_has_the_same_order(self) -> None:
        labels = Path(__file__).parent.parent / "ghostnetv2-cifar10" / "labels.txt"
        self.assertEqual(tuple(labels.read_text(encoding="utf-8").split()), CLASSES)


class AugmentTest(unittest.TestCase):
    def setUp(self) -> None:
        self.generator = torch.Generator()
        self.generator.manual_seed(1)

    def test_output_is_network_input_and_follows_the_generator(self) -> None:
        pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
        state = self.generator.get_state()
        first = augment(pixels, AugmentConfig(), self.generator)
        second = augment(pixels, AugmentConfig(), self.generator)
        self.generator.set_state(state)
        again = augment(pixels, AugmentConfig(), self.generator)
        self.assertEqual(first.shape, (8, 3, INPUT_SIZE, INPUT_SIZE))
        self.assertTrue(first.is_contiguous(memory_format=torch.channels_last))
        self.assertTrue(first.isfinite().all())
        self.assertTrue(torch.equal(first, again))
        self.assertFalse(torch.equal(first, second))

    def test_an_affine_map_that_does_nothing_only_enlarges(self) -> None:
        images = torch.rand(4, 3, 32, 32)
        enlarged = F.interpolate(images, size=INPUT_SIZE, mode="bilinear", align_corners=False)
        warped = random_affine(images, NO_AUGMENTATION, self.generator)
        torch.testing.assert_close(warped, enlarged, atol=1e-4, rtol=0)

    def test_a_sure_flip_mirrors(self) -> None:
        images = torch.rand(4, 3, 32, 32)
        plain = random_affine(images, NO_AUGMENTATION, self.generator)
        mirrored = random_affine(images, replace(NO_AUGMENTATION, flip=1.0), self.generator)
        torch.testing.assert_close(mirrored, plain.flip(3), atol=1e-4, rtol=0)

    def test_cutout_erases_one_whole_square(self) -> None:
        images = torch.ones(500, 3, 64, 64)
        erased = cutout(images, replace(NO_AUGMENTATION, cutout=1.0), self.generator) == 0
        self.assertTrue((erased.sum((1, 2, 3)) == 3 * 16 * 16).all())
        self.assertTrue((erased.any(3).sum(2) == 16).all())
        self.assertTrue((erased.any(2).sum(2) == 16).all())
        # The outermost rows and columns can be drawn too.
        self.assertTrue(erased.any(0).any(0).any(0).all())
        self.assertTrue(erased.any(0).any(0).any(1).all())
        self.assertTrue((images == 1).all(), "the input is left alone")

    def test_cutout_strikes_at_its_probability(self) -> None:
        images = torch.ones(1000, 3, 64, 64)
        struck = (cutout(images, AugmentConfig(), self.generator) == 0).any(3).any(2).any(1)
        self.assertAlmostEqual(struck.float().mean().item(), 0.5, delta=0.08)


class RecipeTest(unittest.TestCase):
    def test_learning_rate_rises_then_falls(self) -> None:
        recipe = Recipe()
        rates = [recipe.learning_rate(step / 1000) for step in range(1001)]
        top = rates.index(max(rates))
        self.assertAlmostEqual(top / 1000, recipe.warmup, delta=0.005)
        self.assertAlmostEqual(rates[top], recipe.peak_lr, delta=0.001)
        self.assertLess(rates[0], recipe.peak_lr / 20)
        self.assertAlmostEqual(rates[-1], recipe.final_lr)
        self.assertEqual(rates[:top], sorted(rates[:top]))
        self.assertEqual(rates[top:], sorted(rates[top:], reverse=True))

    def test_budget_counts_epochs_or_minutes(self) -> None:
        self.assertEqual(Budget(epochs=2).progress(step=5, steps_per_epoch=10, seconds=9e9), 0.25)
        self.assertEqual(Budget(minutes=2).progress(step=5, steps_per_epoch=1, seconds=30), 0.25)

    def test_only_matrices_and_kernels_are_decayed(self) -> None:
        model = build_model()
        decayed, free = build_optimizer(model, Recipe()).param_groups
        self.assertEqual(free["weight_decay"], 0)
        self.assertTrue(all(p.ndim > 1 for p in decayed["params"]))
        self.assertTrue(all(p.ndim == 1 for p in free["params"]))
        count = len(decayed["params"]) + len(free["params"])
        self.assertEqual(count, len(list(model.parameters())))


class TrainingTest(Case):
    recipe = Recipe(batch_size=10)

    def setUp(self) -> None:
        self.pixels, self.labels = decode_all(load_split(self.data, "train"))

    def test_loss_falls_on_a_batch_seen_again_and_again(self) -> None:
        training = Training(replace(self.recipe, augment=NO_AUGMENTATION), CPU)
        losses = [training.train_step(self.pixels, self.labels, 0.02).item() for _ in range(20)]
        self.assertTrue(np.isfinite(losses).all())
        self.assertAlmostEqual(losses[0], np.log(10), delta=0.5)
        self.assertLess(np.mean(losses[-3:]), 0.7 * np.mean(losses[:3]))

    def test_a_resumed_run_ends_where_an_uninterrupted_one_does(self) -> None:
        budget, plan = Budget(epochs=3), {"plan": 1}
        whole = Training(self.recipe, CPU)
        self.assertTrue(run(whole, self.pixels, self.labels, budget, QUIET))
        self.assertEqual(whole.step, 6)

        # Step 3 is in the middle of an epoch.
        checkpoint = self.folder / "checkpoint.pt"
        paused = Training(self.recipe, CPU)
        self.assertFalse(run(paused, self.pixels, self.labels, budget, QUIET, stop_after=3))
        paused.save(checkpoint, plan)
        resumed = Training(self.recipe, CPU)
        resumed.restore(checkpoint, plan)
        self.assertEqual(resumed.step, 3)
        self.assertTrue(run(resumed, self.pixels, self.labels, budget, QUIET))
        for mine, other in ((resumed.model, whole.model), (resumed.average, whole.average)):
            mine, other = getattr(mine, "model", mine), getattr(other, "model", other)
            for name, value in mine.state_dict().items():
                self.assertTrue(torch.equal(value, other.state_dict()[name]), name)

        with self.assertRaisesRegex(TrainingError, "other settings.*plan: 1 → 2"):
            resumed.restore(checkpoint, {"plan": 2})
        with self.assertRaisesRegex(TrainingError, "no checkpoint"):
            resumed.restore(self.folder / "absent.pt", plan)

    def test_too_few_images_are_refused(self) -> None:
        training = Training(Recipe(), CPU)
        with self.assertRaisesRegex(TrainingError, "fewer than one batch"):
            run(training, self.pixels, self.labels, Budget(epochs=1), QUIET)

    def test_a_loss_that_is_not_finite_stops_the_run(self) -> None:
        training = Training(self.recipe, CPU)
        with torch.no_grad():
            training.model.classifier.bias.fill_(float("nan"))
        with self.assertRaisesRegex(TrainingError, "loss is nan"):
            run(training, self.pixels, self.labels, Budget(epochs=1), QUIET)


class AverageTest(unittest.TestCase):
    def test_average_moves_towards_the_network_and_copies_counters(self) -> None:
        model = build_model()
        average = MovingAverage(model, max_decay=0.9, every=2)
        before = average.model.classifier.bias.clone()
        with torch.no_grad():
            model.classifier.bias.add_(1)
            model.bn1.num_batches_tracked.fill_(7)
        average.update(101)
        self.assertTrue(torch.equal(average.model.classifier.bias, before), "not an even step")
        average.update(1000)
        moved = average.model.classifier.bias - before
        torch.testing.assert_close(moved, torch.full_like(moved, 1 - 0.9**2))
        self.assertEqual(average.model.bn1.num_batches_tracked.item(), 7)


class ExportTest(Case):
    def test_exported_file_is_a_complete_timm_state_dict_in_fp16(self) -> None:
        path = self.folder / "weights.safetensors"
        model = build_model()
        sha256 = export_fp16(model, path)
        stored = load_file(path)
        expected = timm.create_model("ghostnetv2_100", num_classes=10).state_dict()
        self.assertEqual(
            {name: value.shape for name, value in stored.items()},
            {name: value.shape for name, value in expected.items()},
        )
        for name, value in stored.items():
            wanted = torch.float16 if expected[name].is_floating_point() else torch.int64
            self.assertEqual(value.dtype, wanted, name)

        loaded = load_weights(path)
        for name, value in loaded.state_dict().items():
            source = model.state_dict()[name]
            self.assertTrue(torch.equal(value, source.to(stored[name].dtype).to(value.dtype)), name)
        # What was read back is written again to the last byte.
        self.assertEqual(export_fp16(loaded, self.folder / "again.safetensors"), sha256)

    def test_values_too_large_for_fp16_are_refused(self) -> None:
        model = build_model()
        with torch.no_grad():
            model.classifier.bias[0] = 1e6
        with self.assertRaisesRegex(WeightsError, "classifier.bias"):
            export_fp16(model, self.folder / "overflow.safetensors")

    def test_files_that_do_not_fit_are_refused(self) -> None:
        path = self.folder / "partial.safetensors"
        with self.assertRaisesRegex(WeightsError, "does not exist"):
            load_weights(path)
        path.write_bytes(b"no safetensors")
        with self.assertRaisesRegex(WeightsError, "not a readable"):
            load_weights(path)
        save_file({"classifier.bias": torch.zeros(10)}, path)
        with self.assertRaisesRegex(WeightsError, "does not fit"):
            load_weights(path)


class EvaluateTest(Case):
    def test_a_network_that_always_says_frog_is_right_on_frogs(self) -> None:
        model = build_model().eval()
        with torch.no_grad():
            model.classifier.weight.zero_()
            model.classifier.bias.copy_(torch.tensor([5.0, 4, 3, 2, 1, 0, 9, 0, 0, 0]))
        scores = evaluate(model, load_split(self.data, "test"))
        self.assertEqual(scores.images, 10)
        self.assertAlmostEqual(scores.top1, 0.1)
        self.assertAlmostEqual(scores.top5, 0.5)
        self.assertEqual([name for name, share in scores.per_class.items() if share], ["frog"])

    def test_the_source_step_changes_photographs_but_not_32_pixel_images(self) -> None:
        rng = np.random.default_rng(0)
        small = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        large = Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8))
        with_step, without = evaluation_transform(32), evaluation_transform(0)
        self.assertEqual(with_step(large).shape, (3, INPUT_SIZE, INPUT_SIZE))
        self.assertTrue(torch.equal(with_step(small), without(small)))
        self.assertFalse(torch.equal(with_step(large), without(large)))


class ManifestTest(Case):
    def manifest(self, text: str) -> Path:
        path = self.folder / "manifest.toml"
        path.write_text(text, encoding="utf-8")
        return path

    def test_only_the_digest_changes(self) -> None:
        text = '# kept\nid = "m"\n[weights]\nfile = "w" # too\n{} = "{}{}" # and this\n'
        for key, prefix in (("digest", "sha256:"), ("sha256", "")):
            path = self.manifest(text.format(key, prefix, "0" * 64))
            check_manifest(path)
            set_digest(path, "a" * 64)
            self.assertEqual(path.read_text("utf-8"), text.format(key, prefix, "a" * 64))

    def test_a_manifest_that_cannot_be_updated_is_refused(self) -> None:
        twice = 'digest = ""\n[other]\ndigest = ""\n'
        for text, message in (
            ('id = "m"\n', "found 0"),
            (twice, "found 2"),
            ("digest = \n", "not valid TOML"),
        ):
            path = self.manifest(text)
            with self.subTest(message), self.assertRaisesRegex(ManifestError, message):
                check_manifest(path)
        with self.assertRaisesRegex(ManifestError, "cannot read"):
            check_manifest(self.folder / "absent.toml")


class CommandTest(Case):
    train_per_class = 13  # One full batch of 128.

    def train(self, *extra: str) -> tuple[int, str]:
        """Exit code and output of ``train.py`` with these arguments."""
        output = io.StringIO()
        argv = ["--data", str(self.data), "--output", str(self.folder / "run"), *extra]
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            with unittest.mock.patch("sys.argv", ["train.py", *argv]):
                code = training_script.main()
        return code, output.getvalue()

    def test_pause_resume_and_finish(self) -> None:
        manifest = self.folder / "manifest.toml"
        manifest.write_text('digest = "sha256:"\n', encoding="utf-8")
        weights = self.folder / "export" / "weights.safetensors"
        common = ("--epochs", "2", "--export", str(weights), "--manifest", str(manifest))

        code, output = self.train(*common, "--stop-after", "1")
        self.assertEqual((code, weights.exists()), (0, False), output)
        self.assertIn("paused at step 1", output)

        code, output = self.train(*common)
        self.assertEqual(code, 1)
        self.assertIn("give --resume", output)

        code, output = self.train(*common, "--resume")
        self.assertEqual(code, 0, output)
        report = json.loads((self.folder / "run" / "report.json").read_text("utf-8"))
        self.assertEqual(report["steps"], 2)
        self.assertEqual(report["fp16"]["images"], 10)
        self.assertIn(f'digest = "{report["digest"]}"', manifest.read_text("utf-8"))
        load_weights(weights)

    def test_missing_data_is_one_clear_line(self) -> None:
        code, output = self.train("--data", str(self.folder / "nowhere"))
        self.assertEqual(code, 1)
        self.assertRegex(output, r"\Aerror: .*nowhere does not exist\n\Z")


if __name__ == "__main__":
    unittest.main()
