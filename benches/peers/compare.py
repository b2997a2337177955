"""Load-tests GhostServe and alternative servers in turns, on the same weights and photographs.

Starts all servers on free ports, waits until each answers a photograph, checks that all find the same class in a few
photographs, also when they are sent at the same time (so in batches), and starts `ghostserve bench`, which lets the
targets take turns round by round. With --openvino-runtime a second run compares bf16. Needs only Python 3.8; --python
names the Python that has the packages of requirements.txt. All servers are stopped at the end, also after an error.

    python benches/peers/compare.py --python .venv/bin/python --images photos --out target/bench/peers
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
SUFFIXES = (".jpg", ".jpeg")
# Number of photographs that all servers must agree on. With synthetic weights the classes are close together and most
# photographs have the same class, so equal classes alone prove little. Probabilities, which differ widely, are compared
# as well.
CHECKED = 16
# Largest share of the photographs whose class may differ between servers: each decodes and scales in its own way.
MAX_DIFFERENT = 0.25
# Largest ratio of probabilities: between two servers, in the median; and between a server's answers to single requests
# and to simultaneous ones.
MAX_RATIO_BETWEEN_SERVERS = 1.15
MAX_RATIO_IN_BATCHES = 1.05


class Failure(Exception):
    """An error that ends the comparison, with a message for the user."""


class Target:
    """A server that runs in its own process group."""

    def __init__(self, name: str, command: list[str], path: str, port: int, log: Path, env: dict[str, str]) -> None:
        self.name = name
        self.url = f"http://127.0.0.1:{port}{path}"
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **env}, start_new_session=True
            )

    def classify(self, body: bytes) -> tuple[str, float]:
        """Returns the number of the most probable class, and its probability."""
        request = urllib.request.Request(self.url, body, {"Content-Type": "image/jpeg"})
        with urllib.request.urlopen(request, timeout=20) as response:
            result = json.load(response)
        best = result.get("results", [result])[0]["predictions"][0]
        return best["class"], best["probability"]

    def wait(self, body: bytes, seconds: float) -> None:
        """Waits until the server answers a photograph."""
        end = time.monotonic() + seconds
        while True:
            try:
                self.classify(body)
                return
            except (OSError, urllib.error.URLError):
                # The server does not listen yet, or is not ready.
                if self.process.poll() is not None:
                    raise Failure(f"{self.name} ended with {self.process.returncode}; see {self.log}") from None
                if time.monotonic() > end:
                    raise Failure(f"{self.name} does not answer after {seconds:.0f} s; see {self.log}") from None
                time.sleep(0.2)

    def stop(self) -> None:
        """Sends SIGTERM to the group, then kills what remains."""
        self.signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            pass
        self.signal(signal.SIGKILL)
        self.process.wait()

    def signal(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def ours(name: str, options: argparse.Namespace, extra: list[str]) -> Target:
    port = free_port()
    command = [options.ghostserve, "serve", "--listen", f"127.0.0.1:{port}", "--model", str(options.model)]
    # No grace period: there is no load balancer that has to notice the end.
    command += ["--drain-grace", "0s", *extra, *options.serve_args]
    return Target(name, command, "/v1/classify", port, options.out / f"{name}.log", {})


def peer(name: str, options: argparse.Namespace, script: str, env: dict[str, str]) -> Target:
    port = free_port()
    command = [options.python, str(HERE / script), "--address", "127.0.0.1", "--port", str(port)]
    command += ["--log-level", "warning"]
    env = {"PEER_MODEL": str(options.onnx), **env}
    return Target(name, command, "/inference", port, options.out / f"{name}.log", env)


def ratio(one: float, other: float) -> float:
    return max(one, other) / min(one, other)


def check(targets: list[Target], bodies: list[bytes]) -> None:
    """Fails unless the answers show that all targets have the same weights."""
    answers = []
    for target in targets:
        alone = [target.classify(body) for body in bodies]
        with ThreadPoolExecutor(len(bodies)) as pool:
            together = list(pool.map(target.classify, bodies))
        # Detects answers that go to the wrong request of a batch.
        worst = max(ratio(one[1], other[1]) for one, other in zip(alone, together))
        if worst > MAX_RATIO_IN_BATCHES:
            raise Failure(f"{target.name} answers simultaneous requests differently: probability ratio {worst:.3f}")
        answers.append(alone)
    for target, theirs in zip(targets[1:], answers[1:]):
        same = sum(one[0] == other[0] for one, other in zip(answers[0], theirs))
        median = statistics.median(ratio(one[1], other[1]) for one, other in zip(answers[0], theirs))
        print(f"{target.name}: {same} of {len(bodies)} classes equal to those of {targets[0].name},", end=" ")
        print(f"median probability ratio {median:.3f}")
        if len(bodies) - same > MAX_DIFFERENT * len(bodies) or median > MAX_RATIO_BETWEEN_SERVERS:
            raise Failure(f"{target.name} and {targets[0].name} do not serve the same weights")


def run(name: str, starts: list, options: argparse.Namespace, bodies: list[bytes]) -> None:
    """Runs one comparison. Each function in `starts` starts one target."""
    targets: list[Target] = []
    try:
        # One after the other: GhostServe measures the machine when it starts.
        for start in starts:
            targets.append(start())
            targets[-1].wait(bodies[0], options.start_timeout)
        check(targets, bodies)
        command = [options.ghostserve, "bench", *(f"{target.name}={target.url}" for target in targets)]
        command += ["--images", str(options.images), "--connections", str(options.connections)]
        command += ["--duration", options.duration, "--warm-up", options.warm_up, "--rounds", str(options.rounds)]
        command += ["--json", str(options.out / f"{name}.json"), "--html", str(options.out / f"{name}.html")]
        print(" ".join(command), flush=True)
        code = subprocess.call(command)
        if code:
            raise Failure(f"ghostserve bench ended with {code}")
    finally:
        for target in targets:
            target.stop()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ghostserve", default="target/release/ghostserve", help="the GhostServe binary")
    parser.add_argument("--python", default=sys.executable, help="the Python with requirements.txt")
    parser.add_argument("--images", type=Path, required=True, help="folder of JPEG files")
    parser.add_argument("--onnx", type=Path, default=Path("target/bench/ghostnetv2_100.onnx"), help="export.py's file")
    parser.add_argument("--model", type=Path, help="model folder with the same weights [default: model.py writes it]")
    parser.add_argument("--openvino-runtime", help="folder of ONNX Runtime with OpenVINO: also compares bf16")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--duration", default="10s")
    parser.add_argument("--warm-up", default="3s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--start-timeout", type=float, default=120, help="seconds that a server may take to start")
    parser.add_argument("--out", type=Path, default=Path("target/bench/peers"), help="folder for results and logs")
    parser.add_argument("serve_args", nargs="*", help="after --: arguments of ghostserve serve")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    photographs = sorted(path for path in options.images.iterdir() if path.suffix.lower() in SUFFIXES)
    if not photographs:
        raise Failure(f"no JPEG files in {options.images}")
    bodies = [path.read_bytes() for path in photographs[:CHECKED]]
    if options.model is None:
        options.model = options.out / "model"
        command = [options.python, str(HERE / "model.py"), "--onnx", str(options.onnx), "--out", str(options.model)]
        subprocess.run(command, check=True)
    run(
        "f32",
        [
            lambda: ours("ours", options, []),
            lambda: peer("mosec", options, "mosec_server.py", {}),
            lambda: peer("openvino-f32", options, "openvino_server.py", {"PEER_PRECISION": "f32"}),
        ],
        options,
        bodies,
    )
    if options.openvino_runtime:
        extra = ["--onnxruntime", options.openvino_runtime, "--provider", "openvino", "--precision", "bf16"]
        run(
            "bf16",
            [
                lambda: ours("ours-bf16", options, extra),
                lambda: peer("openvino-bf16", options, "openvino_server.py", {"PEER_PRECISION": "bf16"}),
            ],
            options,
            bodies,
        )


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # SIGTERM acts like Ctrl-C, so that no server keeps running.
    signal.signal(signal.SIGTERM, interrupt)
    try:
        main()
    except (Failure, subprocess.CalledProcessError) as failure:
        sys.exit(f"compare.py: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
