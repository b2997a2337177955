"""`python -m ghostserve photo.jpg …`: classifies files, a line each."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from . import Client, GhostServeError, ImageError, __version__


def main(arguments: list[str] | None = None) -> int:
    """Runs the program. Returns its exit status: 1 if a file, an image or the server failed."""
    parser = argparse.ArgumentParser(
        prog="python -m ghostserve", description="Classify images with a GhostServe server."
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="an image file")
    parser.add_argument("--url", default="http://localhost:8080", help="the server (default: %(default)s)")
    parser.add_argument("--top-k", type=int, default=1, help="predictions per image (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=4, help="open requests (default: %(default)s)")
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(arguments)
    failed = False
    sent: deque[str] = deque()

    def fail(path: str, detail: str) -> None:
        nonlocal failed
        failed = True
        print(f"{path}: error: {detail}", file=sys.stderr)

    def images() -> Iterator[bytes]:
        for path in options.images:
            try:
                image = Path(path).read_bytes()
            except OSError as error:
                fail(path, error.strerror or str(error))
            else:
                sent.append(path)
                yield image

    try:
        with Client(options.url) as client:
            results = client.classify_many(images(), concurrency=options.concurrency, top_k=options.top_k)
            for result in results:
                path = sent.popleft()
                if isinstance(result, ImageError):
                    fail(path, result.detail)
                else:
                    labels = ", ".join(f"{p.label} {p.probability:.3f}" for p in result.predictions)
                    print(f"{path}: {labels}")
    except (GhostServeError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
