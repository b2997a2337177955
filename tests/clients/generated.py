"""Generates a client of a running server with openapi-python-client, and classifies a photograph with it.

usage: generated.py URL PHOTO. Lists the models, classifies the photograph as a file, as a form and as JSON, and prints the best label.
Needs the packages of requirements-generated.txt. A warning of the generator is a failure: it means that a part of the interface is missing.
"""

from __future__ import annotations

import base64
import importlib
import io
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = "generated_client"


def generate(url: str, folder: str) -> None:
    """Writes the package into a folder, from which it can be imported then."""
    # `--meta none` is the code alone. The settings leave out the tools that format the code: they change nothing that runs.
    settings = Path(folder) / "settings.yaml"
    settings.write_text("post_hooks: []\n", encoding="utf-8")
    command = [sys.executable, "-c", "from openapi_python_client.cli import app; app()", "generate"]
    options = ["--url", f"{url}/openapi.json", "--meta", "none", "--config", str(settings), "--fail-on-warning"]
    done = subprocess.run([*command, *options, "--output-path", f"{folder}/{PACKAGE}"], capture_output=True, text=True)
    output = done.stdout + done.stderr
    assert done.returncode == 0 and "WARNING" not in output, output
    sys.path.insert(0, folder)


def part(name: str):
    return importlib.import_module(f"{PACKAGE}.{name}")


def main() -> None:
    url, photo = sys.argv[1], Path(sys.argv[2]).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        generate(url, folder)
        models = part("models")
        file = lambda content: part("types").File(payload=io.BytesIO(content), file_name="photo.jpg")  # noqa: E731
        classify = part("api.images.classify").sync
        with part("client").Client(base_url=url) as client:
            listing = part("api.models.models").sync(client=client)
            default = next(model for model in listing.models if model.default)
            assert default.classes > 1

            raw = classify(client=client, body=file(photo), top_k=2)
            assert isinstance(raw, models.Classified) and raw.model.id == default.id, raw
            best, second = raw.results[0].predictions
            assert best.probability >= second.probability

            form = classify(client=client, body=models.ImagesForm(images=[file(photo), file(b"no image")]))
            good, bad = form.results
            assert isinstance(good, models.ImageResult) and isinstance(bad, models.ImageFailure), form
            assert good.predictions[0].label == best.label
            assert bad.error.code == models.ErrorCode.UNSUPPORTED_IMAGE_FORMAT

            text = models.ImagesJson(images=[base64.b64encode(photo).decode()])
            assert classify(client=client, body=text).results[0].predictions[0].label == best.label

            maps = part("api.images.features").sync(
                client=client, body=file(photo), levels="embedding", fit=models.Fit.LETTERBOX, dtype=models.Dtype.F16
            )
            embedding = maps.results[0].features[0]
            assert len(base64.b64decode(embedding.data)) == 2 * embedding.shape[-1], embedding

            problem = classify(client=client, body=file(photo), model="missing")
            assert isinstance(problem, models.Problem) and problem.code == models.ErrorCode.UNKNOWN_MODEL, problem
            print(f"python: {best.label}")


if __name__ == "__main__":
    main()
