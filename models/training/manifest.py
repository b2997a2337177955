"""The one field of a model's manifest that a new weights file changes: its digest."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

# A TOML line such as `digest = "sha256:…"` or `sha256 = "…"`, whatever table it stands in.
_DIGEST_LINE = re.compile(
    r'^(?P<head>[ \t]*(?:digest|sha256)[ \t]*=[ \t]*["\'](?:sha256:)?)'
    r'(?P<value>[0-9a-fA-F]*)(?P<tail>["\'])',
    re.MULTILINE,
)


class ManifestError(Exception):
    """The manifest cannot be updated. The message is meant for the user."""


def check_manifest(path: Path) -> None:
    """Fails if :func:`set_digest` would: call it before the hours of training, not after.

    Raises:
        ManifestError: see :func:`set_digest`.
    """
    _replaced(path, "0" * 64)


def set_digest(path: Path, sha256: str) -> None:
    """Puts ``sha256`` (hexadecimal) into the manifest's digest field.

    Only the digest's characters change: a manifest is written by people, and re-serialising it
    would lose their comments and order.

    Raises:
        ManifestError: the file is missing or not TOML, or does not hold exactly one digest.
    """
    text = _replaced(path, sha256)
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _replaced(path: Path, sha256: str) -> str:
    try:
        text = path.read_text(encoding="utf-8")
        tomllib.loads(text)
    except OSError as error:
        raise ManifestError(f"cannot read the manifest {path}: {error.strerror}") from error
    except ValueError as error:
        raise ManifestError(f"the manifest {path} is not valid TOML: {error}") from error
    changed, count = _DIGEST_LINE.subn(rf"\g<head>{sha256}\g<tail>", text)
    if count != 1:
        raise ManifestError(
            f'the manifest {path} must hold exactly one digest = "sha256:…" line; found {count}'
        )
    return changed
