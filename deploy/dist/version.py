#!/usr/bin/env python3
"""The version: where it is written, and what CHANGELOG.md says about it.

    version.py check            fails unless all files name one version that has a section in CHANGELOG.md
    version.py set VERSION      writes VERSION into all files and opens its section in CHANGELOG.md
    version.py date [DAY]       gives the section of this version a day (default: today), as a release needs
    version.py notes [TAG]      prints the section; with TAG (v0.2.0), fails unless it is of this version and dated
"""

import argparse
import datetime
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHANGELOG = ROOT / "CHANGELOG.md"
NUMBER = r"\d+\.\d+\.\d+(?:-[0-9A-Za-z.]+)?"
# Files that name the version, each with the patterns of the lines that do. A file that does not exist is skipped.
PLACES = {
    "Cargo.toml": [rf'^version = "({NUMBER})"$', rf'path = "crates/[a-z-]+", version = "({NUMBER})"'],
    "Cargo.lock": [rf'^name = "ghostserve(?:-[a-z]+)?"\nversion = "({NUMBER})"$'],
    "Dockerfile": [rf"^ARG VERSION=({NUMBER})$"],
    "deploy/kubernetes/base/kustomization.yaml": [rf"^    newTag: ({NUMBER})$"],
    "deploy/kubernetes/overlays/kserve/kustomization.yaml": [rf"^    newTag: ({NUMBER})$"],
    "docs/kubernetes.md": [
        rf"^TAG=({NUMBER})$",
        rf"^    newTag: ({NUMBER})$",
        rf"^FROM registry.example.com/team/ghostserve:({NUMBER})$",
        rf"image `ghostserve:({NUMBER})`",
    ],
    "clients/python/pyproject.toml": [rf'^version = "({NUMBER})"$'],
    "clients/python/src/ghostserve/__init__.py": [rf'^__version__ = "({NUMBER})"$'],
}
HEADING = re.compile(rf"^## \[({NUMBER})\] - (\S+)$", re.MULTILINE)


class VersionError(Exception):
    """The files do not agree; the message says which and what to do."""


def current(root=ROOT):
    return tomllib.loads((root / "Cargo.toml").read_text())["workspace"]["package"]["version"]


def named(root=ROOT):
    """Yields (file, version) of every place that names the version."""
    for name, patterns in PLACES.items():
        path = root / name
        if not path.is_file():
            continue
        for pattern in patterns:
            found = re.findall(pattern, path.read_text(), re.MULTILINE)
            if not found:
                raise VersionError(f"{name} has no line like `{pattern}`: correct PLACES in deploy/dist/version.py")
            yield from ((name, version) for version in found)


def sections(text):
    """Returns day and text of each version's section."""
    heads = list(HEADING.finditer(text))
    ends = [head.start() for head in heads[1:]] + [len(text)]
    return {head[1]: (head[2], text[head.end() : end].strip()) for head, end in zip(heads, ends)}


def check(root=ROOT):
    """Returns the version, if all files agree."""
    version = current(root)
    wrong = sorted({f"{name} ({found})" for name, found in named(root) if found != version})
    if wrong:
        raise VersionError(f"Cargo.toml has version {version}, other files do not: {', '.join(wrong)}; run version.py set")
    if version not in sections((root / "CHANGELOG.md").read_text()):
        raise VersionError(f"CHANGELOG.md has no section `## [{version}] - …`; run version.py set")
    return version


def write(version, root=ROOT):
    """Writes a version into all files."""
    if not re.fullmatch(NUMBER, version):
        raise VersionError(f"`{version}` is not a version like 0.2.0")
    for name, patterns in PLACES.items():
        path = root / name
        if path.is_file():
            text = path.read_text()
            for pattern in patterns:
                text = re.sub(pattern, lambda m: m[0].replace(f"{m[1]}", version), text, flags=re.MULTILINE)
            path.write_text(text)
    changelog = root / "CHANGELOG.md"
    text = changelog.read_text()
    if version not in sections(text):
        start = HEADING.search(text).start()
        changelog.write_text(f"{text[:start]}## [{version}] - Unreleased\n\n{text[start:]}")


def date(day, root=ROOT):
    """Gives the section of the current version a day."""
    version, changelog = current(root), root / "CHANGELOG.md"
    text = changelog.read_text()
    undated = f"## [{version}] - Unreleased\n"
    if undated not in text:
        raise VersionError(f"CHANGELOG.md has no line `{undated.strip()}`: version {version} has a day already")
    changelog.write_text(text.replace(undated, f"## [{version}] - {day}\n"))


def notes(tag=None, root=ROOT):
    """Returns the text of the current version's section."""
    version = check(root)
    day, text = sections((root / "CHANGELOG.md").read_text())[version]
    if tag is not None and tag != f"v{version}":
        raise VersionError(f"the tag is {tag}, but the files name version {version}; tag v{version}, or run version.py set")
    if tag is not None and not re.fullmatch(r"\d{4}-\d\d-\d\d", day):
        raise VersionError(f"version {version} has no date in CHANGELOG.md; run version.py date before the tag")
    if not text:
        raise VersionError(f"the section of version {version} in CHANGELOG.md is empty: write down what changed")
    return text


def main():
    parser = argparse.ArgumentParser(description="Shows and changes the version.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="fail unless all files name one version that CHANGELOG.md describes")
    commands.add_parser("set", help="write a version into all files").add_argument("version")
    today = datetime.date.today().isoformat()
    commands.add_parser("date", help="date the changes of this version").add_argument("day", nargs="?", default=today)
    commands.add_parser("notes", help="print the changes of this version").add_argument("tag", nargs="?")
    arguments = parser.parse_args()
    try:
        if arguments.command == "check":
            print(check())
        elif arguments.command == "set":
            write(arguments.version)
        elif arguments.command == "date":
            date(arguments.day)
        else:
            print(notes(arguments.tag))
    except VersionError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
