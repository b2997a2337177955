#!/usr/bin/env python3
"""Makes the packages of `make dist` and installs them in a bare Debian without Python and compilers. The archive must
work wherever it is unpacked and moved to. The Debian package must install, upgrade and purge cleanly, and its service
must run within its restrictions. Needs root, buildah, strace and systemd-analyze.

    dist.py BINARY --runtime FOLDER
"""

import argparse
import ctypes
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from common import PHOTO, ROOT, check, fail, free_port, request, tool, wait_for

BUILD = ROOT / "deploy/dist/build.py"
SERVICE = "usr/lib/systemd/system/ghostserve.service"
MODEL = "ghostnetv2-cifar10"
# Highest exposure that `systemd-analyze security` may report, in tenths: 0 is none, 100 everything.
EXPOSURE = 15
# prctl's option that forbids memory which is both writable and executable, as MemoryDenyWriteExecute does.
PR_SET_MDWE = 65
# Files that installing any package changes.
VOLATILE = re.compile(
    r"(var/(lib/dpkg|log|cache/(ldconfig|debconf))|proc|tmp|run)/"
    r"|etc/((passwd|group|g?shadow|subu?id|subgid)-?|ld\.so\.cache|\.pwd\.lock)$"
)


def run(*command, code=0, **kwargs):
    command = [str(part) for part in command]
    done = subprocess.run(command, capture_output=True, text=True, **kwargs)
    if done.returncode != code:
        fail(f"{' '.join(command)}: exit status {done.returncode}, expected {code}\n{done.stdout}{done.stderr}")
    return done.stdout


@contextmanager
def bare_system():
    """Yields the root folder of a fresh Debian, the base of our image."""
    image = re.search(r"^ARG DEBIAN_IMAGE=(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1]
    buildah = tool("buildah", "Debian: buildah")
    container = run(buildah, "from", image).strip()
    try:
        root = Path(run(buildah, "mount", container).strip())
        for program in ("python3", "cc", "gcc", "cargo", "pip"):
            check(not (root / "usr/bin" / program).exists(), f"a bare system has no {program}")
        yield root
    finally:
        run(buildah, "rm", container)


def within(root, *command, user="0:0"):
    """Returns a command that runs another one inside `root`, with /proc."""
    script = 'mount --bind /proc "$1/proc" && shift && exec "$@"'
    chroot = [tool("chroot", "Debian: coreutils"), f"--userspec={user}", str(root), *map(str, command)]
    return ["unshare", "--mount", "sh", "-c", script, "sh", str(root), *chroot]


def environment(**settings):
    """Returns a bare system's environment: nothing of this machine's may help the program."""
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LC_ALL": "C.UTF-8", **settings}


def inside(root, *command, code=0, **settings):
    return run(*within(root, *command), code=code, env=environment(**settings))


def stop(process):
    process.terminate()
    check(process.wait(40) == 0, "the server drains and exits with status 0")


def classify(port, process):
    """Waits for the server and classifies a photograph."""
    def ready():
        check(process.poll() is None, f"the server runs on, found exit status {process.returncode}")
        return request(port, "GET", "/readyz")[0] == 200

    wait_for("the server", ready, 60)
    code, body = request(port, "POST", "/v1/classify?top_k=1", PHOTO.read_bytes())
    check(code == 200, f"a photograph is classified, found {code}: {body}")
    return json.loads(body)["results"][0]["predictions"][0]["label"]


def serve(root, program):
    """Serves a photograph with a program of `root`, and returns the label."""
    port = free_port()
    settings = environment(GHOSTSERVE_LISTEN=f"127.0.0.1:{port}", GHOSTSERVE_LOG="warn", GHOSTSERVE_DRAIN_GRACE="0s",
                           HOME="/tmp")  # fmt: skip
    process = subprocess.Popen(within(root, program, "serve"), env=settings)
    try:
        label = classify(port, process)
        stop(process)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return label


def make(binary, runtime, output, **settings):
    """Makes the packages, and returns their paths by suffix."""
    command = [sys.executable, str(BUILD), str(binary), f"--runtime={runtime}", f"--output={output}"]
    run(*command, env=os.environ | settings)
    return {path.suffix: path for path in sorted(output.iterdir())}


def check_output(made, output):
    sums = next(output.glob("SHA256SUMS-*"))
    run("sha256sum", "--check", "--strict", sums.name, cwd=output)
    check(len(sums.read_text().splitlines()) == 3, "archive, package and bill of materials have checksums")
    bill = made[".json"].read_text()
    error = JsonStrictValidator(SchemaVersion.V1_5).validate_str(bill)
    check(error is None, f"the bill of materials is valid CycloneDX 1.5: {error}")
    document = json.loads(bill)
    names = {component["name"] for component in document["components"]}
    check({"onnxruntime", "ort", "axum", "ghostserve-jpeg"} <= names, "the bill names libraries, crates and ours")
    check(not {"criterion", "proptest", "reqwest"} & names, "the bill names nothing that only tests use")
    unlicensed = [c["name"] for c in document["components"] if not c.get("licenses")]
    check(not unlicensed, f"every component has a licence, found {unlicensed}")
    return document


def check_archive(root, archive, document):
    """Unpacks the archive in two places and moves one of them; it must serve from each."""
    with tarfile.open(archive) as tar:
        members = tar.getmembers()
        names = [member.name for member in members]
        check(names == sorted(names), "the archive is sorted")
        check(len({m.mtime for m in members}) == 1, "all times are equal")
        check({(m.uid, m.gid, m.uname) for m in members} == {(0, 0, "root")}, "all files are root's")
        check({oct(m.mode) for m in members} == {"0o644", "0o755"}, "modes do not depend on the builder's umask")
    top = archive.name.removesuffix(".tar.gz")
    shutil.copy(archive, root / "tmp/archive.tar.gz")
    for place in ("/opt", "/srv/a folder"):
        inside(root, "mkdir", "-p", place)
        inside(root, "tar", "-xzf", "/tmp/archive.tar.gz", "-C", place)
    check_contents(root, root / "opt" / top, document)
    found = {serve(root, f"/opt/{top}/bin/ghostserve")}
    shutil.rmtree(root / "opt" / top)
    found.add(serve(root, f"/srv/a folder/{top}/bin/ghostserve"))
    inside(root, "mv", f"/srv/a folder/{top}", "/home/ghostserve")
    found.add(serve(root, "/home/ghostserve/bin/ghostserve"))
    inside(root, "ln", "-s", "/home/ghostserve/bin/ghostserve", "/usr/local/bin/ghostserve")
    found.add(serve(root, "ghostserve"))
    check(len(found) == 1, f"every place gives the same answer, found {found}")
    inside(root, "rm", "-r", "/home/ghostserve", "/usr/local/bin/ghostserve")
    size = archive.stat().st_size / 1e6
    print(f"archive: {size:.1f} MB; serves in two places, moved, and through a link ({found.pop()})")


def manual_commands(words):
    """Returns the one line of docs/install.md that has these words, without sudo."""
    text = (ROOT / "docs/install.md").read_text()
    lines = [line for line in text.splitlines() if all(word in line for word in words)]
    check(len(lines) == 1, f"docs/install.md has one line with {words}, found {lines}")
    return lines[0].replace("sudo ", "")


def check_local(root, archive):
    """Installs the archive in /usr/local and removes it with the manual's commands."""
    before = files_of(root)
    command = manual_commands(["tar", "/usr/local"])
    command = re.sub(r"ghostserve-VERSION-linux-\S+", "/tmp/archive.tar.gz", command)
    inside(root, "sh", "-ec", command)
    unit = (root / "usr/local/lib/systemd/system/ghostserve.service").read_text()
    check("ExecStart=/usr/local/bin/ghostserve serve\n" in unit, "the archive's unit starts the program in /usr/local")
    inside(root, "ghostserve", "classify", MODEL, "/tmp/photo.jpg", HOME="/tmp")
    inside(root, "sh", "-ec", manual_commands(["Check the installed files"]).split("`")[1])
    inside(root, "sh", "-ec", manual_commands(["SHA256SUMS", "xargs rm"]))
    after = files_of(root)
    left = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    check(not left, f"the manual's commands remove the archive, but not {sorted(left)}")
    print("archive: installs in /usr/local and is removed as docs/install.md says")


def check_contents(root, top, document):
    """Checks the list of files, licences, completions and manual pages of an unpacked archive."""
    docs = top / "share/doc/ghostserve"
    inside(root, "sh", "-c", 'cd "$0" && sha256sum --check --quiet --strict share/doc/ghostserve/SHA256SUMS',
           f"/{top.relative_to(root)}")  # fmt: skip
    files = {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()}
    listed = {line.split("  ", 1)[1] for line in (docs / "SHA256SUMS").read_text().splitlines()}
    check(files - listed == {"share/doc/ghostserve/SHA256SUMS"}, "the list of checksums has every other file")
    for name in ("README.md", "LICENSE", "CHANGELOG.md", "docs/install.md", "onnxruntime/LICENSE",
                 "onnxruntime/ThirdPartyNotices.txt", "ghostserve.default"):  # fmt: skip
        check((docs / name).is_file(), f"the archive has {name}")
    licences = (docs / "crates-licenses.txt").read_text()
    for component in document["components"]:
        if component["purl"].startswith("pkg:cargo/") and not component["name"].startswith("ghostserve"):
            name = f"{component['name']} {component['version']}"
            uses = re.findall(rf"\b{re.escape(name)}(?=[ ,\n])", licences)
            check(len(uses) >= 2, f"the licences list {name} and have its text")
    check_completions(top, "share/zsh/site-functions/_ghostserve")
    page = (top / "share/man/man1/ghostserve.1").read_text()
    check(".TH" in page and "serve" in page, "there is a manual page")
    check(any((top / "share/man/man1").glob("ghostserve-serve.1")), "subcommands have manual pages")


def check_completions(top, zsh):
    bash = top / "share/bash-completion/completions/ghostserve"
    run("bash", "-n", bash)
    fish = top / "share/fish/vendor_completions.d/ghostserve.fish"
    for path, word in ((bash, "complete "), (top / zsh, "#compdef ghostserve"), (fish, "complete -c ghostserve")):
        check(word in path.read_text(), f"{path.name} completes ghostserve's arguments")


def files_of(root):
    """Returns all files of `root` but those that installing any package changes."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            relative = str(path.relative_to(root))
            if not VOLATILE.match(relative):
                found[relative] = os.readlink(path) if path.is_symlink() else path.stat().st_size
    return found


def check_package(root, package):
    """Installs, uses, upgrades, removes and purges the Debian package."""
    before = files_of(root)
    shutil.copy(package, root / "tmp/ghostserve.deb")
    inside(root, "dpkg", "--install", "/tmp/ghostserve.deb")
    user = inside(root, "id", "ghostserve").split()
    check("uid=0" not in user[0] and user[0].startswith("uid="), f"the service has a user of its own, found {user}")
    owned = inside(root, "dpkg", "--listfiles", "ghostserve").split()
    wrong = [f for f in owned if (root / f[1:]).lstat().st_uid or (root / f[1:]).lstat().st_mode & 0o022]
    check(not wrong, f"files are root's and writable by root alone, found {wrong}")
    inside(root, "dpkg", "--verify", "ghostserve")
    uid = int(re.search(r"uid=(\d+)", user[0])[1])
    check((root / "var/lib/ghostserve").stat().st_uid == uid, "the folder of models is its user's")
    check_completions(root / "usr", "share/zsh/vendor-completions/_ghostserve")
    check((root / "usr/share/man/man1/ghostserve.1.gz").is_file(), "the manual page is where man looks")
    link = root / "etc/systemd/system/multi-user.target.wants/ghostserve.service"
    check(link.is_symlink(), "the service starts with the machine")

    # ONNX Runtime stores an identifier of the machine below the user's cache folder.
    answer = inside(root, "ghostserve", "classify", MODEL, "/tmp/photo.jpg", HOME="/tmp")
    check("%" in answer or "0." in answer, f"a photograph is classified, found {answer!r}")
    check_unit(root)
    label = check_service(root, uid)

    inside(root, "dpkg", "--install", "/tmp/ghostserve.deb")
    check("drain" in (root / "etc/default/ghostserve").read_text().lower(), "an upgrade keeps changed settings")
    inside(root, "dpkg", "--remove", "ghostserve")
    check(not (root / "usr/bin/ghostserve").exists(), "removing removes the program")
    kept = (root / "etc/default/ghostserve").is_file() and (root / "var/lib/ghostserve").is_dir()
    check(kept, "removing keeps settings and models")
    inside(root, "dpkg", "--purge", "ghostserve")
    after = files_of(root)
    left = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    check(not left, f"purging leaves nothing behind, found {sorted(left)}")
    gone = [folder for folder in ("var/lib", "var/cache", "usr/lib") if (root / folder / "ghostserve").exists()]
    check(not gone, f"purging removes the folders of the service, found {gone}")
    size = package.stat().st_size / 1e6
    print(f"package: {size:.1f} MB; installed, served as its user ({label}), upgraded, removed and purged")


def settings_of(root):
    """Returns the settings of the service's section by name; a name that appears several times has several values."""
    settings = {}
    for line in (root / SERVICE).read_text().splitlines():
        if not line.startswith("#") and "=" in line:
            name, _, value = line.partition("=")
            settings.setdefault(name, []).append(value)
    return settings


def check_unit(root):
    """Lets systemd read the unit, and checks what it cannot know."""
    analyze = tool("systemd-analyze", "Debian: systemd")
    with tempfile.TemporaryDirectory() as folder:
        # Outside of the bare system the program has another path.
        unit = Path(folder, "ghostserve.service")
        unit.write_text((root / SERVICE).read_text().replace("/usr/bin/ghostserve", f"{root}/usr/bin/ghostserve"))
        warnings = run(analyze, "verify", "--man=no", unit)
        done = subprocess.run([analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True)
        check(not warnings and "ghostserve.service" not in done.stderr, f"systemd reads the unit: {done.stderr}")
        report = run(analyze, "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE}", unit)
    settings = settings_of(root)
    check(settings["Type"] == ["notify"], "`systemctl start` returns when the server is ready")
    check(settings["KillSignal"] == ["SIGTERM"], "the service drains when it is stopped")
    help_text = inside(root, "ghostserve", "serve", "--help")
    drain = [int(re.search(rf"--{flag} <TIME>.*?\[default: (\d+)s\]", help_text, re.DOTALL)[1])
             for flag in ("drain-grace", "drain-timeout")]  # fmt: skip
    check(int(settings["TimeoutStopSec"][0]) > sum(drain), f"systemd waits longer than the drain takes, {sum(drain)} s")
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", report)[1]
    print(f"service: systemd reads it without a warning; exposure {exposure} of 10")


def allowed_calls(root):
    """Returns the system calls that the service's filters allow."""
    analyze = tool("systemd-analyze", "Debian: systemd")

    def calls(group):
        lines = run(analyze, "syscall-filter", group).splitlines()
        names = {line.strip() for line in lines[1:] if line.strip() and not line.strip().startswith("#")}
        return set().union(*({n} if not n.startswith("@") else calls(n) for n in names))

    allowed = set()
    for value in settings_of(root)["SystemCallFilter"]:
        allowed = allowed - calls(value[1:]) if value.startswith("~") else allowed | calls(value)
    # systemd allows these whatever the filter says.
    return allowed | calls("@default")


def deny_executable_memory():
    """Forbids what MemoryDenyWriteExecute forbids, where the kernel can (Linux 6.3)."""
    ctypes.CDLL(None).prctl(PR_SET_MDWE, 1, 0, 0, 0)


def check_service(root, uid):
    """Runs the service as systemd would: its command, user, settings and limits, with its system calls traced."""
    port = free_port()
    settings = root / "etc/default/ghostserve"
    changed = settings.read_text().replace("127.0.0.1:8080", f"127.0.0.1:{port}")
    settings.write_text(f"{changed}\nGHOSTSERVE_DRAIN_GRACE=0s\n")
    values = dict(line.split("=", 1) for line in settings.read_text().splitlines() if re.match(r"\w+=", line))
    declared = settings_of(root)
    values |= dict(value.split("=", 1) for value in declared["Environment"])
    command = declared["ExecStart"][0].split()
    # The folder that systemd makes for the service.
    inside(root, "install", "-d", "-o", "ghostserve", "-g", "ghostserve", f"{values['XDG_CACHE_HOME']}/ghostserve")
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace")
        strace = [tool("strace", "Debian: strace"), "-f", "-qq", "-s", "64", "-o", str(trace)]
        limits = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs", "--bounding-set=-all"]
        limited = within(root, "setpriv", *limits, *command)
        ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # A name without a path: that of the bare system's folder is too long for a socket.
        ready.bind(f"\0ghostserve-{os.getpid()}")
        ready.settimeout(60)
        values["NOTIFY_SOCKET"] = f"@ghostserve-{os.getpid()}"
        process = subprocess.Popen(strace + limited, env=environment(**values), preexec_fn=deny_executable_memory)
        try:
            check(ready.recv(100) == b"READY=1", "the server tells systemd when it is ready")
            check(request(port, "GET", "/readyz")[0] == 200, "it is ready when it says so")
            label = classify(port, process)
            check_identity(trace, command, uid)
            # strace passes no signals on.
            os.kill(server_of(trace, command), signal.SIGTERM)
            check(process.wait(40) == 0, "the server drains and exits with status 0")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        used = calls_of(trace, command)
    check(len(used) > 20, f"the trace has system calls, found {sorted(used)}")
    denied = used - allowed_calls(root)
    check(not denied, f"the service may use every system call that it makes, not {sorted(denied)}")
    check("deviceid" not in str(list(root.glob("var/**/*"))), "ONNX Runtime stores no identifier of the machine")
    stored = list((root / "var/cache/ghostserve").iterdir())
    check(stored, "the measured plan is stored in the service's cache")
    print(f"service: runs as its user without capabilities; {len(used)} system calls, all of them allowed")
    return label


def start_of(trace, command):
    """Returns the process id and the rest of the trace from the start of the server."""
    text = trace.read_text(errors="replace")
    start = re.search(rf'^(\d+) +execve\("{re.escape(command[0])}".*$', text, re.MULTILINE)
    check(start, f"the trace shows the start of {command[0]}")
    return int(start[1]), text[start.end() :]


def server_of(trace, command):
    return start_of(trace, command)[0]


def calls_of(trace, command):
    """Returns the names of the system calls that the server made."""
    _, text = start_of(trace, command)
    return set(re.findall(r"^\d+ +(?:<\.\.\. )?([a-z_0-9]+)(?:\(| resumed)", text, re.MULTILINE))


def check_identity(trace, command, uid):
    status = Path(f"/proc/{server_of(trace, command)}/status").read_text()
    check(re.search(rf"^Uid:\t{uid}\t{uid}\t{uid}\t{uid}$", status, re.MULTILINE), "the server runs as its user")
    for kind in ("Prm", "Eff", "Bnd"):
        check(f"\nCap{kind}:\t0000000000000000\n" in status, f"the server has no capabilities ({kind})")


def main():
    parser = argparse.ArgumentParser(description="Installs the packages in a bare Debian.")
    parser.add_argument("binary", type=Path)
    parser.add_argument("--runtime", type=Path, required=True, help="folder of ONNX Runtime")
    arguments = parser.parse_args()
    check(os.geteuid() == 0, "this test installs packages in a folder as root")
    binary, runtime = arguments.binary.resolve(), arguments.runtime.resolve()
    with tempfile.TemporaryDirectory() as folder:
        output, again = Path(folder, "first"), Path(folder, "second")
        made = make(binary, runtime, output)
        document = check_output(made, output)
        # With another umask, time zone and locale.
        os.umask(0o077)
        repeated = make(binary, runtime, again, TZ="Asia/Tokyo", LC_ALL="C")
        os.umask(0o022)
        for suffix in (".gz", ".json", ".deb"):
            digests = {hashlib.sha256(files[suffix].read_bytes()).hexdigest() for files in (made, repeated)}
            check(len(digests) == 1, f"the {suffix} file is made again byte for byte")
        with bare_system() as root:
            shutil.copy(PHOTO, root / "tmp/photo.jpg")
            check_archive(root, made[".gz"], document)
            check_local(root, made[".gz"])
            check_package(root, made[".deb"])


if __name__ == "__main__":
    main()
