#!/usr/bin/env python3
"""Fetches ONNX Runtime's shared library into a folder: the wheel by pip, its hash checked, the library taken out.

    fetch.py FOLDER [--distribution onnxruntime-openvino] [--platform linux-x86_64]

Does nothing, and says nothing, if FOLDER already holds the library of the version in wheels.txt. Needs Python 3.8 and
pip; honours pip's own configuration (index, proxy, certificates).
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

# What a distribution's library loads from the folder it lies in, a pattern a file. Of the names that one library has in
# the wheel this is the one that others ask for; plugins for other devices, other languages' interfaces and Python's
# extension module stay behind.
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
    """The distribution's version, and for every platform its pip tag and hash."""
    version, wheels = None, {}
    chosen = False
    for line in WHEELS.read_text().splitlines():
        fields = line.split("#")[0].split()
        if len(fields) == 2:
            chosen = fields[0] == distribution
            version = fields[1] if chosen else version
        elif fields and chosen:
            wheels[fields[0]] = (fields[1], fields[2])
    return version, wheels


def this_platform():
    system = {"Darwin": "macos"}.get(platform.system(), platform.system().lower())
    machine = {"arm64": "aarch64", "AMD64": "x86_64"}.get(platform.machine(), platform.machine())
    return f"{system}-{machine}"


def library_name(target):
    return "libonnxruntime.dylib" if target.startswith("macos") else "libonnxruntime.so"


def download(requirement, tag, sha256, folder):
    """The wheel's path; pip refuses a wheel of another hash, and so do we."""
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
    """Which members of a wheel to take, and what to call them: `libonnxruntime.so.1.2.3` or `libonnxruntime.1.2.3.dylib`
    becomes `library`, companions keep their names."""
    stem, suffix = library.split(".")
    names = {member: PurePosixPath(member).name for member in members if PurePosixPath(member).parent.name == "capi"}
    taken = {}
    for pattern in [rf"{stem}\.(.*\.)?{suffix}(\..*)?", *companions]:
        found = [member for member, name in names.items() if re.fullmatch(pattern, name)]
        if len(found) != 1:
            raise LookupError(f"expected one file like {pattern}, found {len(found)}")
        taken[found[0]] = names[found[0]] if taken else library
    return taken


def notices(members):
    """The licences, which go wherever the library goes."""
    paths = {member: PurePosixPath(member) for member in members}
    return {m: p.name for m, p in paths.items() if p.name in ("LICENSE", "ThirdPartyNotices.txt") and len(p.parts) == 2}


def extract(wheel, taken, folder):
    with zipfile.ZipFile(wheel) as archive:
        for member, name in taken.items():
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
    # The stamp is written last: a fetch that was cut off is done again.
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
            taken = select(members, library, COMPANIONS[distribution]) | notices(members)
        except LookupError as error:
            raise SystemExit(f"error: {wheel.name}: {error}") from None
        extract(wheel, taken, Path(scratch))
        for name in taken.values():
            os.replace(Path(scratch) / name, arguments.folder / name)
    stamp.write_text(f"{sha256}\n")


if __name__ == "__main__":
    main()
