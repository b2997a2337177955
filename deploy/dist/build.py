#!/usr/bin/env python3
"""Makes the packages of a release from a built server: a relocatable archive, a Debian package, a bill of materials.

    build.py BINARY --runtime FOLDER [--output target/dist]

BINARY must run on this machine, because it writes its completions and manual pages. FOLDER has ONNX Runtime, as
deploy/onnxruntime/fetch.py leaves it. Needs Python 3.11, cargo with the sources of the dependencies, readelf, and
dpkg-deb for the Debian package. Equal inputs give equal files: names are sorted, owners are root, times are
SOURCE_DATE_EPOCH or the last commit's.
"""

import argparse
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import crates
import version

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "deploy/onnxruntime"))
import fetch  # noqa: E402

# ELF's name of a machine: Rust's, Debian's.
MACHINES = {
    "Advanced Micro Devices X86-64": ("x86_64", "amd64"),
    "AArch64": ("aarch64", "arm64"),
}
# Debian's packages of the libraries that may be loaded.
PACKAGES = {
    "libc6": {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "ld-linux-x86-64.so.2",
              "ld-linux-aarch64.so.1"},
    "libgcc-s1": {"libgcc_s.so.1"},
    "libstdc++6": {"libstdc++.so.6"},
}  # fmt: skip
# The first release of GCC whose libstdc++ has a version of its symbols.
GLIBCXX = {22: "6", 23: "7", 24: "7.2", 25: "8", 26: "9", 27: "9.2", 28: "9.3", 29: "11", 30: "12", 31: "13.1",
           32: "13.2", 33: "14", 34: "15"}  # fmt: skip
LIBRARY = "libonnxruntime.so"
DOC = "share/doc/ghostserve"


def run(*command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(map(str, command))}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def timestamp():
    """Returns the time of all files, in seconds."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return int(given or run("git", "-C", ROOT, "log", "-1", "--format=%ct"))


def machine(binary):
    """Returns Rust's and Debian's name of the processor that `binary` is built for."""
    found = re.search(r"Machine:\s+(.*)", run("readelf", "--file-header", binary))[1].strip()
    if found not in MACHINES:
        raise SystemExit(f"error: {binary} is built for {found}; packages are made for {', '.join(MACHINES)}")
    return MACHINES[found]


def symbol_versions(binary):
    """Returns the versions of symbols that `binary` needs, by library."""
    needed, library = {}, None
    text = run("readelf", "--wide", "--dynamic", "--version-info", binary)
    for name in re.findall(r"\(NEEDED\).*\[(.*)\]", text):
        needed[name] = set()
    for line in text.partition("Version needs section")[2].splitlines():
        if found := re.search(r"File: (\S+)", line):
            library = found[1]
        elif (found := re.search(r"Name: ([A-Z]+)_([0-9.]+)\b", line)) and library:
            needed.setdefault(library, set()).add((found[1], found[2]))
    return needed


def numbers(text):
    return tuple(int(part) for part in text.split("."))


def depends(binaries):
    """Returns Debian's packages, with versions, that hold everything `binaries` load."""
    least = {}
    for binary in binaries:
        for library, symbols in symbol_versions(binary).items():
            package = next((p for p, files in PACKAGES.items() if library in files), None)
            if package is None and library != LIBRARY:
                raise SystemExit(f"error: {binary} needs {library}; name its package in PACKAGES of {__file__}")
            for family, number in symbols:
                if family == "GLIBCXX":
                    minor = numbers(number + ".0.0")[2]
                    number = "5" if minor < min(GLIBCXX) else GLIBCXX[minor]
                elif family not in ("GLIBC", "GCC"):
                    continue
                least[package] = max(least.get(package, "0"), number, key=numbers)
    return [f"{package} (>= {least[package]})" for package in sorted(least)]


def check_version(binary, expected):
    found = run(binary, "--version").split()
    if found[:2] != ["ghostserve", expected]:
        raise SystemExit(f"error: {binary} is {' '.join(found[:2])}, not version {expected}: build it again")


def onnx_runtime(runtime, processor):
    """Returns name, version and SHA-256 of the wheel of which `runtime` has the library, for the bill of materials."""
    name = "onnxruntime"
    number, wheels = fetch.read_wheels(name)
    _, sha256 = wheels[f"linux-{processor}"]
    stamp = runtime / "wheel.sha256"
    if not stamp.is_file() or stamp.read_text().strip() != sha256:
        raise SystemExit(
            f"error: {runtime} is not {name} {number} for linux-{processor}; fetch it with "
            "deploy/onnxruntime/fetch.py, and leave GHOSTSERVE_ONNXRUNTIME unset for `make dist`"
        )
    return name, number, sha256


def notices(runtime):
    """Yields the licence files of ONNX Runtime."""
    for name in ("LICENSE", "ThirdPartyNotices.txt"):
        if not (runtime / name).is_file():
            raise SystemExit(f"error: {runtime} has no {name}; fetch ONNX Runtime with `make runtime`")
        yield f"{DOC}/onnxruntime/{name}", (runtime / name).read_bytes(), 0o644


def manual_pages(binary):
    with tempfile.TemporaryDirectory() as folder:
        run(binary, "man", "--dir", folder)
        pages = {page.name: page.read_bytes() for page in Path(folder).iterdir()}
    if "ghostserve.1" not in pages:
        raise SystemExit(f"error: `{binary} man` wrote {sorted(pages)}, not ghostserve.1")
    return pages


def unit(prefix):
    text = (HERE / "ghostserve.service").read_text()
    return text.replace("@PREFIX@", prefix).encode()


def common_files(binary, runtime, target, bill):
    """Yields path below the prefix, content and mode of the files that both packages have."""
    yield "bin/ghostserve", binary.read_bytes(), 0o755
    yield f"lib/ghostserve/{LIBRARY}", (runtime / LIBRARY).read_bytes(), 0o644
    yield "lib/sysusers.d/ghostserve.conf", (HERE / "ghostserve.sysusers").read_bytes(), 0o644
    completions = {
        "share/bash-completion/completions/ghostserve": "bash",
        "share/fish/vendor_completions.d/ghostserve.fish": "fish",
    }
    for path, shell in completions.items():
        yield path, run(binary, "completions", shell).encode(), 0o644
    for name in ("README.md", "SECURITY.md", "LICENSE"):
        yield f"{DOC}/{name}", (ROOT / name).read_bytes(), 0o644
    for page in sorted((ROOT / "docs").glob("*.md")):
        yield f"{DOC}/docs/{page.name}", page.read_bytes(), 0o644
    yield f"{DOC}/crates-licenses.txt", crates.licences(target).encode(), 0o644
    yield f"{DOC}/ghostserve.cdx.json", bill.encode(), 0o644
    yield from notices(runtime)


def archive_files(binary, files):
    """Returns the files of the archive by path; each is (content, mode)."""
    result = {path: (content, mode) for path, content, mode in files}
    for name, page in manual_pages(binary).items():
        result[f"share/man/man1/{name}"] = page, 0o644
    zsh = run(binary, "completions", "zsh").encode()
    result["share/zsh/site-functions/_ghostserve"] = zsh, 0o644
    result["lib/systemd/system/ghostserve.service"] = unit("/usr/local"), 0o644
    result[f"{DOC}/ghostserve.default"] = (HERE / "ghostserve.default").read_bytes(), 0o644
    result[f"{DOC}/CHANGELOG.md"] = (ROOT / "CHANGELOG.md").read_bytes(), 0o644
    sums = "".join(f"{hashlib.sha256(result[path][0]).hexdigest()}  {path}\n" for path in sorted(result))
    return result | {f"{DOC}/SHA256SUMS": (sums.encode(), 0o644)}


def debian_files(binary, files):
    """Returns the files of the Debian package by path; each is (content, mode)."""
    result = {f"usr/{path}": (content, mode) for path, content, mode in files}
    for name, page in manual_pages(binary).items():
        result[f"usr/share/man/man1/{name}.gz"] = gzip.compress(page, mtime=0), 0o644
    zsh = run(binary, "completions", "zsh").encode()
    result["usr/share/zsh/vendor-completions/_ghostserve"] = zsh, 0o644
    result["usr/lib/systemd/system/ghostserve.service"] = unit("/usr"), 0o644
    result["etc/default/ghostserve"] = (HERE / "ghostserve.default").read_bytes(), 0o644
    changes = gzip.compress((ROOT / "CHANGELOG.md").read_bytes(), mtime=0)
    result[f"usr/{DOC}/changelog.gz"] = changes, 0o644
    licence = result.pop(f"usr/{DOC}/LICENSE")[0].decode()
    head = "GhostServe is licensed under Apache-2.0, the text below. The licences of the Rust crates in it are in\n"
    head += "crates-licenses.txt, those of ONNX Runtime in the folder onnxruntime.\n\n"
    result[f"usr/{DOC}/copyright"] = (head + licence).encode(), 0o644
    return result


def write_archive(path, top, files, time):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        folders = {str(parent) for name in files for parent in Path(name).parents}
        for name in sorted(folders | set(files)):
            member = tarfile.TarInfo(f"{top}/{name}".removesuffix("/."))
            member.mtime, member.uname, member.gname = time, "root", "root"
            if name in files:
                content, member.mode = files[name]
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(member)
    # Not gzip.open: it writes the file's name into the file.
    path.write_bytes(gzip.compress(buffer.getvalue(), 6, mtime=0))


def write_debian(path, control, files, time):
    if not shutil.which("dpkg-deb"):
        raise SystemExit("error: dpkg-deb is missing; install dpkg, or give --no-deb")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        files = files | {
            "DEBIAN/control": (control.encode(), 0o644),
            "DEBIAN/conffiles": (b"/etc/default/ghostserve\n", 0o644),
            "DEBIAN/md5sums": (md5sums(files), 0o644),
        }
        for script in ("postinst", "prerm", "postrm"):
            files[f"DEBIAN/{script}"] = (HERE / "debian" / script).read_bytes(), 0o755
        for name, (content, mode) in files.items():
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            target.chmod(mode)
        for item in (root, *root.rglob("*")):
            if item.is_dir():
                item.chmod(0o755)
            os.utime(item, (time, time))
        environment = os.environ | {"SOURCE_DATE_EPOCH": str(time)}
        # Every system with the C library that the program needs reads zstd, and xz takes fifteen times as long.
        command = ["dpkg-deb", "--root-owner-group", "-Zzstd", "-z12", "--build", str(root), str(path)]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def md5sums(files):
    lines = [f"{hashlib.md5(files[n][0]).hexdigest()}  {n}\n" for n in sorted(files) if not n.startswith("etc/")]
    return "".join(lines).encode()


def control(number, architecture, requirements, files):
    size = sum((len(content) + 1023) // 1024 for content, _ in files.values())
    return f"""\
Package: ghostserve
Version: {number.replace("-", "~")}
Architecture: {architecture}
Maintainer: The GhostServe authors <ghostserve@example.invalid>
Installed-Size: {size}
Depends: {", ".join(requirements)}
Recommends: ca-certificates
Section: net
Priority: optional
Description: image-inference server for plain CPUs
 GhostServe classifies images and extracts feature maps with networks of the
 GhostNet family, over HTTP and gRPC. It contains ONNX Runtime and a small
 model; other models are folders that it reads.
"""


def main():
    parser = argparse.ArgumentParser(description="Makes the packages of a release from a built server.")
    parser.add_argument("binary", type=Path)
    parser.add_argument("--runtime", type=Path, required=True, help="folder of ONNX Runtime")
    parser.add_argument("--output", type=Path, default=ROOT / "target/dist")
    parser.add_argument("--no-deb", action="store_true", help="make no Debian package")
    arguments = parser.parse_args()
    binary, runtime, output = arguments.binary.resolve(), arguments.runtime.resolve(), arguments.output
    number, time = version.check(), timestamp()
    check_version(binary, number)
    processor, architecture = machine(binary)
    target = f"{processor}-unknown-linux-gnu"

    output.mkdir(parents=True, exist_ok=True)
    name = f"ghostserve-{number}-linux-{processor}"
    bill = crates.bill_of_materials(target, number, time, onnx_runtime(runtime, processor))
    (output / f"{name}.cdx.json").write_text(bill)
    files = list(common_files(binary, runtime, target, bill))
    write_archive(output / f"{name}.tar.gz", name, archive_files(binary, files), time)
    made = [f"{name}.tar.gz", f"{name}.cdx.json"]
    if not arguments.no_deb:
        requirements = depends([binary, runtime / LIBRARY]) + ["init-system-helpers", "passwd"]
        # GitHub replaces a `~` in the name of a file, so only the version inside has it.
        package = f"ghostserve_{number}_{architecture}.deb"
        content = debian_files(binary, files)
        write_debian(output / package, control(number, architecture, requirements, content), content, time)
        made.append(package)
    sums = "".join(f"{hashlib.sha256((output / n).read_bytes()).hexdigest()}  {n}\n" for n in sorted(made))
    (output / f"SHA256SUMS-{processor}").write_text(sums)
    for item in made:
        print(f"{output / item}: {(output / item).stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
