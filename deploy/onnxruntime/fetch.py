#!/usr/bin/env python3
"""Fetches ONNX Runtime's shared library into a folder: the wheel by pip, its hash checked, the library taken out.

    fetch.py FOLDER [--platform linux-x86_64]

Does nothing, and says nothing, if FOLDER already holds the library of the version in wheels.txt. Needs Python 3.8 and
pip; honours pip's own configuration (index, proxy, certificates).
"""

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

WHEELS = Path(__file__).with_name("wheels.txt")


def read_wheels():
    """The version, and for every platform its pip tag and hash."""
    version, wheels = None, {}
    for line in WHEELS.read_text().splitlines():
        fields = line.split("#")[0].split()
        if fields[:1] == ["version"]:
            version = fields[1]
        elif fields:
            wheels[fields[0]] = (fields[1], fields[2])
    return version, wheels


def this_platform():
    system = {"Darwin": "macos"}.get(platform.system(), platform.system().lower())
    machine = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    return f"{system}-{machine}"


def library_name(target):
    return "libonnxruntime.dylib" if target.startswith("macos") else "libonnxruntime.so"


def download(version, tag, sha256, folder):
    """The wheel's path; pip refuses a wheel of another hash, and so do we."""
    requirement = folder / "requirement.txt"
    requirement.write_text(f"onnxruntime=={version} --hash=sha256:{sha256}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--only-binary=:all:", "--implementation=cp", "--python-version=3.12", "--abi=cp312", f"--platform={tag}",
        "--require-hashes", f"--requirement={requirement}", f"--dest={folder}",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"error: {wheel.name}: expected sha256 {sha256}, found {found}")
    return wheel


def extract(wheel, name, folder):
    """Takes the library out of the wheel: the file `libonnxruntime.so.1.2.3` or `libonnxruntime.1.2.3.dylib`."""
    stem, suffix = name.split(".")
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            path = PurePosixPath(member)
            wanted = path.name.startswith(f"{stem}.") and f".{suffix}" in path.name
            if path.parent.name == "capi" and wanted:
                with archive.open(member) as source, open(folder / name, "wb") as target:
                    shutil.copyfileobj(source, target)
                return
    raise SystemExit(f"error: {wheel.name} holds no {name}")


def main():
    parser = argparse.ArgumentParser(description="Fetches ONNX Runtime's shared library into a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--platform", default=this_platform(), help="which library (default: this machine's)")
    arguments = parser.parse_args()

    version, wheels = read_wheels()
    if arguments.platform not in wheels:
        known = ", ".join(sorted(wheels))
        raise SystemExit(
            f"error: there is no ONNX Runtime {version} wheel for {arguments.platform} (only {known}); build the "
            "library yourself and name it in GHOSTSERVE_ONNXRUNTIME"
        )
    tag, sha256 = wheels[arguments.platform]
    name = library_name(arguments.platform)
    # The stamp is written last: a fetch that was cut off is done again.
    stamp = arguments.folder / "wheel.sha256"
    if (arguments.folder / name).is_file() and stamp.is_file() and stamp.read_text().strip() == sha256:
        return

    print(f"fetching ONNX Runtime {version} for {arguments.platform}", file=sys.stderr)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        try:
            wheel = download(version, tag, sha256, Path(scratch))
        except subprocess.CalledProcessError as error:
            raise SystemExit(
                f"error: pip could not fetch onnxruntime {version} ({tag}), exit status {error.returncode}; if this "
                "machine has no network, copy the library here and name it in GHOSTSERVE_ONNXRUNTIME"
            ) from None
        extract(wheel, name, Path(scratch))
        os.replace(Path(scratch) / name, arguments.folder / name)
    stamp.write_text(f"{sha256}\n")


if __name__ == "__main__":
    main()
