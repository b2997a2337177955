#!/usr/bin/env python3
"""Goes the way of a newcomer: runs the commands of README.md, as printed there and in that order, in a fresh clone.

    first_hour.py                      everything for real: compiles a release and builds the container image
    first_hour.py --binary FILE        FILE stands in for what `cargo build --release` would make
    first_hour.py --image NAME         this image stands in for what `docker build` would make
    first_hour.py --runtime FOLDER     this ONNX Runtime stands in for the one that `make` would fetch
    first_hour.py --port 0             a free port instead of 8080, in all commands
    first_hour.py --photo FILE         the photograph; without it one of the repository's drawn test images
    first_hour.py --until NAME         stop after this block
    first_hour.py --list               list the blocks

Needs only Python's standard library, git, curl, make and what the README asks for.

The README marks a block of code with a comment on the line before it, which its readers do not see:

    <!-- first-hour: NAME -->              the block is run; a failing command fails the test
    <!-- first-hour: NAME server -->       it keeps running: the test waits until the server is ready, and goes on. It
                                           takes the place of the one before, which is stopped as by Ctrl-C
    <!-- first-hour: prints -->            output of the block before: every key of shown JSON must be in it; lines of
                                           text must be in it in this order, where `…` stands for anything

Blocks share their folder and environment, as in one terminal. Python blocks run with that terminal's `python`. Without
a Docker daemon, a program `docker` that runs buildah is put before the real one: see `stand_in_for_docker`.
"""

import argparse
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PHOTO = ROOT / "tests/goldens/images/jpeg-large.jpg"
PORT = 8080
# Seconds. The first start of a server measures the machine; a release is compiled in one block.
READY, BLOCK = 120, 3600
MARK = re.compile(r"<!-- first-hour: ([a-z-]+)( server)? -->\n+```(\w+)\n(.*?)```", re.DOTALL)


def fail(message):
    sys.exit(f"FAILED: {message}")


def say(message):
    print(f"first hour: {message}", flush=True)


@dataclass
class Block:
    """A marked block of the README."""

    name: str
    language: str
    code: str
    server: bool
    # Shown outputs: language and text.
    outputs: list[tuple[str, str]]


def blocks(readme):
    """Returns the marked blocks of a text. Fails if a mark is not before a block, or is unknown."""
    found = []
    for name, server, language, code in MARK.findall(readme):
        if name == "prints":
            if not found:
                fail("README.md: `prints` is the first mark, but belongs to the block before it")
            found[-1].outputs.append((language, code))
        elif language not in ("sh", "python"):
            fail(f"README.md: the block {name} is `{language}`; only sh and python can be run")
        else:
            found.append(Block(name, language, code, bool(server), []))
    marks, read = readme.count("first-hour:"), len(MARK.findall(readme))
    if marks != read:
        fail(f"README.md has {marks} marks `first-hour:`, but only {read} of them are as first_hour.py explains")
    names = [block.name for block in found]
    if not found or len(set(names)) != len(names):
        fail(f"README.md must have marked blocks, each with its own name; found {names}")
    return found


def check_output(block, output):
    """Compares a block's output with what the README shows."""
    for language, shown in block.outputs:
        if language == "json":
            missing = sorted({key for key in re.findall(r'"(\w+)":', shown) if f'"{key}":' not in output})
        else:
            pattern, missing, rest = None, [], output
            for line in filter(None, map(str.rstrip, shown.splitlines())):
                pattern = re.compile(".*?".join(map(re.escape, line.split("…"))))
                match = pattern.search(rest)
                if not match:
                    missing.append(line)
                    break
                rest = rest[match.end() :]
        if missing:
            fail(f"the output of `{block.name}` lacks {missing} of what README.md shows; it is:\n{output}")


class Terminal:
    """A newcomer's terminal: a folder and an environment that blocks change, and a server in the background."""

    def __init__(self, home, port, environment):
        self.home, self.port = home, port
        self.environment, self.folder = home / "environment", home / "folder"
        work = home / "work"
        work.mkdir()
        self.folder.write_text(str(work))
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in environment.items() if name.isidentifier()]
        self.environment.write_text("".join(lines))
        self.server = None
        self.server_log = home / "server.log"

    def command(self, block):
        """The shell command of a block, which begins with the state that the one before left."""
        code = block.code
        if self.port != PORT:
            code = re.sub(rf"(localhost:|-p ){PORT}\b", rf"\g<1>{self.port}", code)
        if block.language == "python":
            script = self.home / f"{block.name}.py"
            script.write_text(code)
            code = f"python {script}\n"
        begin = f'. "{self.environment}"\ncd "$(cat "{self.folder}")"\nset -eo pipefail\n'
        return begin + code + f'export -p >"{self.environment}"\npwd >"{self.folder}"\n'

    def run(self, block):
        """Runs a block to its end and returns its output."""
        command = ["env", "-i", "bash", "-c", self.command(block)]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=BLOCK,
                cwd=self.home,
            )
        except subprocess.TimeoutExpired:
            fail(f"`{block.name}` did not end within {BLOCK} s")
        print(done.stdout, end="" if done.stdout.endswith("\n") else "\n", flush=True)
        if done.returncode:
            fail(f"`{block.name}` ended with status {done.returncode}{self.log_tail()}")
        return done.stdout

    def start(self, block):
        """Starts a server in the place of the one before, waits until it is ready, and returns what it printed."""
        self.stop()
        # A server's block may first do something that ends, and change the folder; the server is its last line.
        *first, last = block.code.strip().replace("\\\n", " ").splitlines()
        if first:
            self.run(Block(block.name, block.language, "\n".join(first) + "\n", False, []))
        command = self.command(Block(block.name, block.language, f"exec {last}\n", False, []))
        with self.server_log.open("w") as log:
            self.server = subprocess.Popen(
                ["env", "-i", "bash", "-c", command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.home,
                start_new_session=True,
            )
        end = time.monotonic() + (BLOCK if "make run" in last else READY)
        while not answers(self.port):
            if self.server.poll() is not None:
                fail(f"`{block.name}` ended with status {self.server.returncode}{self.log_tail()}")
            if time.monotonic() > end:
                fail(f"`{block.name}` is not ready on port {self.port}{self.log_tail()}")
            time.sleep(0.3)
        output = self.server_log.read_text()
        print(output, end="", flush=True)
        return output

    def stop(self):
        """Stops the server as Ctrl-C does, which signals every process of the terminal's foreground."""
        if self.server is None:
            return
        for signum, seconds in ((signal.SIGINT, 60), (signal.SIGKILL, 10)):
            try:
                os.killpg(self.server.pid, signum)
                self.server.wait(seconds)
            except ProcessLookupError:
                pass
            except subprocess.TimeoutExpired:
                say(f"the server did not stop within {seconds} s{self.log_tail()}")
                continue
            break
        self.server = None
        end = time.monotonic() + 60
        while not is_free(self.port):
            if time.monotonic() > end:
                fail(f"port {self.port} is still in use after the server was stopped")
            time.sleep(0.2)

    def log_tail(self):
        if not self.server_log.exists():
            return ""
        return "\nThe server's output ends with:\n" + self.server_log.read_text()[-4000:]


def answers(port):
    """Returns whether a server on this port is ready."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def is_free(port):
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True


def free_port():
    with socket.socket() as s:
        s.bind(("0.0.0.0", 0))
        return s.getsockname()[1]


def stand_in(folder, name, text):
    """Writes a program that takes the place of another."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(text)
    program.chmod(0o755)


def leave(kind, name):
    """Notes what the end of the walk removes from buildah's storage."""
    with open(os.environ["FIRST_HOUR_LEFT"], "a") as file:
        file.write(f"{kind} {name}\n")


def clean_up(left):
    """Removes containers, and the names given to finished images."""
    for line in reversed(left.read_text().splitlines() if left.exists() else []):
        kind, name = line.split()
        command = ["buildah", "rm" if kind == "container" else "rmi", name]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)


def stand_in_for_docker(arguments):
    """`docker` where no daemon runs: the README's commands, mapped to buildah. Needs root.

    - `docker build ARGUMENTS`: `buildah bud ARGUMENTS`, without a network of its own, because containers within
      containers have none; with `--image`, the finished image gets the name instead.
    - `docker run`: the image's program, as its user and with its environment, in a mount namespace whose root is the
      image's files. `--read-only` remounts them so, `-v` binds, `-p HOST:8080` sets the port of the server, since the
      network is this machine's. `--rm` is what happens anyway; every other flag is an error.
    """
    verb, *rest = arguments
    if verb == "build":
        if image := os.environ.get("FIRST_HOUR_IMAGE"):
            say(f"STAND-IN: the image {image} takes the place of `docker {' '.join(arguments)}`")
            name = rest[rest.index("-t") + 1]
            leave("image", name)
            os.execvp("buildah", ["buildah", "tag", image, name])
        say("STAND-IN: `docker build` is `buildah bud`")
        flags = ["--layers", "--isolation=chroot", "--network=host", "--volume=/etc/ssl/certs:/etc/ssl/certs:ro"]
        os.execvp("buildah", ["buildah", "bud", *flags, "--format=docker", *rest])
    if verb != "run":
        fail(f"no stand-in for `docker {verb}`")
    parser = argparse.ArgumentParser(prog="docker run")
    parser.add_argument("--rm", action="store_true")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("-p", dest="port")
    parser.add_argument("-v", dest="volumes", action="append", default=[])
    parser.add_argument("image")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(rest)
    say("STAND-IN: `docker run` starts the image's program in its files, without a network of its own")

    def run(*command):
        return subprocess.run(["buildah", *command], check=True, stdout=subprocess.PIPE, text=True).stdout

    config = json.loads(run("inspect", "--type=image", options.image))["Docker"]["config"]
    container = run("from", "--pull-never", options.image).strip()
    leave("container", container)
    root = Path(run("mount", container).strip())
    (root / "proc").mkdir(exist_ok=True)
    steps = ['mount --bind "$1" "$1"', 'mount --bind /proc "$1/proc"']
    if options.read_only:
        steps.append('mount -o remount,bind,ro "$1"')
    for volume in options.volumes:
        source, target, *_ = volume.split(":")
        (root / target[1:]).mkdir(parents=True, exist_ok=True)
        place = f'"$1"{shlex.quote(target)}'
        steps += [f"mount --bind {shlex.quote(source)} {place}", f"mount -o remount,bind,ro {place}"]
    environment = dict(entry.split("=", 1) for entry in config["Env"])
    environment["PATH"] += ":/usr/sbin:/sbin:/bin"
    if options.port:
        environment["GHOSTSERVE_LISTEN"] = f"0.0.0.0:{options.port.split(':')[0]}"
    program = ["chroot", f"--userspec={config['User']}", str(root), *config["Entrypoint"]]
    program += options.command or config["Cmd"]
    script = " && ".join([*steps, "shift", 'exec "$@"'])
    os.execvpe("unshare", ["unshare", "--mount", "sh", "-c", script, "sh", str(root), *program], environment)


def has_docker():
    try:
        return subprocess.run(["docker", "info"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def make_stand_ins(home, options, environment):
    """Puts the stand-ins that the flags ask for before the real programs, and says so."""
    folder = home / "stand-ins"
    if options.binary:
        say(f"STAND-IN: {options.binary} takes the place of what `cargo` would compile from the clone")
        source, target = shlex.quote(str(options.binary.resolve())), "target/release/ghostserve"
        text = f'#!/bin/sh\necho "STAND-IN for: cargo $*"\nmkdir -p target/release\ncp {source} {target}\n'
        stand_in(folder, "cargo", text)
    if options.runtime:
        say(f"STAND-IN: the ONNX Runtime of {options.runtime} takes the place of the one that `make` would fetch")
        environment["GHOSTSERVE_ONNXRUNTIME"] = str(options.runtime.resolve())
    if options.image or not has_docker():
        if not shutil.which("buildah"):
            fail("neither a Docker daemon nor buildah is here; install one, or stop before the container with --until")
        say("STAND-IN: no Docker daemon is used; `docker` is mapped to buildah, see stand_in_for_docker")
        if options.image:
            environment["FIRST_HOUR_IMAGE"] = options.image
        stand_in(folder, "docker", f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} --as-docker "$@"\n')
    environment["PATH"] = f"{folder}:{environment['PATH']}"


def newcomers_environment(home, port):
    """This process's environment without settings of the server, and with what the README says the reader has."""
    # Variables of the command line of `make test-readme` are in the environment, too, and the README's `make` would take
    # them for its own.
    of_make = ("ARGS", "CARGO", "EP", "KEEP", "MAKE", "MFLAGS", "PRECISION", "PYTHON", "SERVER")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GHOSTSERVE_", *of_make))}
    # No plan of an earlier start.
    environment["XDG_CACHE_HOME"] = str(home / "cache")
    environment["FIRST_HOUR_LEFT"] = str(home / "left")
    # The address of the repository, which the README leaves to its reader.
    environment["REPOSITORY"] = str(ROOT)
    if port != PORT:
        say(f"STAND-IN: port {port} takes the place of {PORT} in every command")
        environment["GHOSTSERVE_LISTEN"] = f"0.0.0.0:{port}"
    return environment


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path)
    parser.add_argument("--image")
    parser.add_argument("--runtime", type=Path)
    parser.add_argument("--photo", type=Path, default=PHOTO)
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--until", metavar="NAME")
    parser.add_argument("--list", action="store_true")
    return parser.parse_args()


def walk(path, options, home):
    """Runs the blocks."""
    port = options.port or free_port()
    if not is_free(port):
        fail(f"port {port} is in use; stop its server, or give another --port")
    environment = newcomers_environment(home, port)
    make_stand_ins(home, options, environment)
    terminal = Terminal(home, port, environment)
    start, walked = time.monotonic(), []
    try:
        for block in path:
            say(f"== {block.name} ({time.monotonic() - start:.0f} s)")
            print(block.code, flush=True)
            check_output(block, terminal.start(block) if block.server else terminal.run(block))
            # The reader's own photograph lies in the folder in which the commands are typed.
            shutil.copy(options.photo, Path(terminal.folder.read_text().strip(), "photo.jpg"))
            walked.append(block.name)
            if block.name == options.until:
                say("NOTE: this is not the whole way, see --until")
                break
    finally:
        terminal.stop()
        clean_up(home / "left")
    say(f"done in {time.monotonic() - start:.0f} s: {', '.join(walked)}")


def main():
    if sys.argv[1:2] == ["--as-docker"]:
        stand_in_for_docker(sys.argv[2:])
    options = parse_arguments()
    path = blocks((ROOT / "README.md").read_text())
    if options.list:
        for block in path:
            print(f"{block.name}{' (server)' if block.server else ''}")
        return
    if options.until and options.until not in [block.name for block in path]:
        fail(f"README.md has no block {options.until}")
    status = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout
    if status:
        say("NOTE: the clone has what is committed; this checkout has other changes, which only README.md's path sees")
    with tempfile.TemporaryDirectory(prefix="first-hour-") as home:
        walk(path, options, Path(home))


if __name__ == "__main__":
    main()
