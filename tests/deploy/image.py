#!/usr/bin/env python3
"""Builds the image with buildah and runs it as its own user on a read-only root file system. It must serve a
photograph, report health, exit cleanly and be small. Needs root.

    image.py [--tag NAME] [--keep] [--build-arg NAME=VALUE] [--binary FILE]
"""

import argparse
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from common import PHOTO, ROOT, check, fail, request, tool, wait_for

# Largest compressed size with the default model on x86-64, bytes.
MAX_SIZE = 120e6


def buildah(*arguments, quiet=True):
    command = [tool("buildah", "Debian: buildah"), *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE if quiet else None, text=True)
    if done.returncode:
        fail(f"{' '.join(command)}: exit status {done.returncode}")
    return done.stdout


def build(tag, arguments):
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    revision = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    # Only Docker's format has a health check. The mount makes the machine's own certificates available to the build.
    buildah(
        "bud", "--layers", "--isolation=chroot", "--network=host", "--volume=/etc/ssl/certs:/etc/ssl/certs:ro",
        "--format=docker", f"--build-arg=REVISION={revision.strip()}", *(f"--build-arg={a}" for a in arguments),
        f"--tag={tag}", ".", quiet=False,
    )  # fmt: skip


def compressed(tag):
    """Returns the size of what a client pulls: the layers as a registry stores them, bytes."""
    with tempfile.TemporaryDirectory() as folder:
        buildah("push", "--quiet", tag, f"oci:{folder}/image")
        return sum(path.stat().st_size for path in Path(folder, "image/blobs/sha256").iterdir())


def check_config(config):
    check(config["User"] == "65532:65532", f"the user is numeric and not root, found {config['User']!r}")
    probe = config["Healthcheck"]["Test"]
    check(probe == ["CMD", "/usr/bin/ghostserve", "health"], "the health check is `ghostserve health`")
    check("8080/tcp" in config["ExposedPorts"], "port 8080 is exposed")
    for label in ("title", "description", "licenses", "version", "revision"):
        check(config["Labels"].get(f"org.opencontainers.image.{label}"), f"the label {label} is set")


def check_files(root):
    """Checks that the image has no unneeded programs, and that scanners find its packages."""
    files = {"/" + str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    programs = {f for f in files if os.access(root / f[1:], os.X_OK) and ".so" not in f}
    check(programs == {"/usr/bin/ghostserve"}, f"there is one program and no shell, found {sorted(programs)}")
    expected = {"/etc/passwd", "/etc/ssl/certs/ca-certificates.crt", "/var/lib/dpkg/status.d/libc6"}
    check(expected <= files, f"users, certificates and the list of packages exist; missing: {sorted(expected - files)}")
    writable = [p for p in root.rglob("*") if not p.is_symlink() and p.stat().st_mode & 0o022 and p != root / "tmp"]
    check(not writable, f"only /tmp is writable for others, found {writable}")
    size = sum((root / f[1:]).stat().st_size for f in files)
    print(f"image: {len(files)} files, {size / 1e6:.1f} MB unpacked")


def inside(root, config, arguments):
    """Returns a command that runs a program of the image as a container engine would: with its user and environment, on
    a read-only root, with only /proc from this machine."""
    user, group = config["User"].split(":")
    script = 'mount --bind "$1" "$1" && mount --bind /proc "$1/proc" && mount -o remount,bind,ro "$1"'
    script += ' && shift && exec "$@"'
    chroot = ["chroot", f"--userspec={user}:{group}", str(root), *arguments]
    return ["unshare", "--mount", "sh", "-c", script, "sh", str(root), *chroot]


def serve(root, config):
    # Container engines create this folder when they start a container.
    (root / "proc").mkdir(exist_ok=True)
    environment = dict(entry.split("=", 1) for entry in config["Env"])
    environment["PATH"] += ":/usr/sbin:/sbin:/bin"
    start = config["Entrypoint"] + config["Cmd"]
    process = subprocess.Popen(inside(root, config, start), env=environment)
    try:
        healthy = inside(root, config, config["Healthcheck"]["Test"][1:])
        probe = lambda: subprocess.run(healthy, env=environment, capture_output=True).returncode == 0
        wait_for("the health check", probe, 60)
        status = Path(f"/proc/{process.pid}/status").read_text()
        check("\nUid:\t65532\t65532\t65532\t65532\n" in status, "the server is not root")
        mounts = Path(f"/proc/{process.pid}/mountinfo").read_text().splitlines()
        roots = [m.split() for m in mounts if m.split()[4] == "/"]
        check(mounts and all(root_mount[5].startswith("ro") for root_mount in roots), "the root is read-only")
        code, body = request(8080, "POST", "/v1/classify?top_k=1", PHOTO.read_bytes())
        check(code == 200, f"a photograph is classified, found {code}: {body}")
        best = json.loads(body)["results"][0]["predictions"][0]
        code, metrics = request(8080, "GET", "/metrics")
        check(code == 200 and b"ghostserve_images_total{" in metrics, "/metrics counts it")
        found = f"{best['label']}, {best['probability']:.2f}"
        print(f"image: serves a photograph ({found}) as user 65532 on a read-only root")
        process.terminate()
        check(process.wait(40) == 0, "it drains and exits with status 0 on SIGTERM")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def main():
    parser = argparse.ArgumentParser(description="Builds the image and runs it.")
    parser.add_argument("--tag", default="ghostserve:test")
    parser.add_argument("--build-arg", action="append", default=[])
    parser.add_argument("--keep", action="store_true", help="keep the image")
    parser.add_argument("--binary", type=Path, help="path to which the server is copied from the image")
    arguments = parser.parse_args()
    check(os.geteuid() == 0, "this test builds and runs images as root")
    build(arguments.tag, arguments.build_arg)
    image = json.loads(buildah("inspect", "--type=image", arguments.tag))
    config = image["Docker"]["config"]
    check_config(config)
    container = buildah("from", "--pull-never", arguments.tag).strip()
    try:
        root = Path(buildah("mount", container).strip())
        check_files(root)
        serve(root, config)
        if arguments.binary:
            shutil.copy(root / "usr/bin/ghostserve", arguments.binary)
    finally:
        buildah("rm", container)
    size = compressed(arguments.tag)
    print(f"image: {size / 1e6:.1f} MB compressed, {image['Docker']['architecture']} (at most {MAX_SIZE / 1e6:.0f})")
    check(size <= MAX_SIZE, "the image is too large")
    if not arguments.keep:
        buildah("rmi", arguments.tag)


if __name__ == "__main__":
    main()
