#!/usr/bin/env python3
"""Attacks servers that it starts itself. For each attack it checks the latency and the failures of an ordinary client,
the server's memory, and that the server works afterwards.

    run.py BINARY [--seconds 4 | --quick] [--only NAME ...] [--list] [--json FILE]

The attackers come from 127.0.0.2 and ordinary clients from 127.0.0.1. The attackers stand for other machines, so they
run in a process of the lowest priority, which gets the processor time that the server leaves. PHOTOS names a folder of
photographs for the ordinary client. GHOSTSERVE_ONNXRUNTIME names the folder of ONNX Runtime, by default .runtime.
"""

import argparse
import collections
import ctypes
import http.client
import json
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "deploy"))

import common
from attacks import ATTACKS, CLASSIFY, FEATURES, MAPS, SAFETENSORS, AttackedServer
from common import PHOTO, ROOT, request, running

# Limits. The ratio of the p99 under attack to the p99 without is checked only if the former exceeds MIN_P99_MS: a ratio
# of two small numbers means nothing.
MAX_RATIO = 3
MIN_P99_MS = 60
# Largest share of failed requests of an ordinary client.
MAX_FAILED = 0.01
# Memory growth at which the server is killed to protect the machine, megabytes.
STOP_GROWTH = 4000
# Longest time that /livez may take during the attack and after it, seconds. In a burst of connections the probe may
# lose its first SYN, which the system repeats after a second.
MAX_LIVEZ = 1.5

# Requests per second of the ordinary client.
RATE = 40
# Length of the measurement without an attack, seconds.
BASELINE_SECONDS = 2
CACHE = Path(tempfile.gettempdir()) / "ghostserve-hostile"


def end_with_parent():
    """Makes Linux kill this process when its parent ends (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Server(common.Server):
    """A server whose log goes to a file."""

    def __init__(self, binary, model):
        self.log = CACHE / "server.log"
        arguments = [f"--plan-cache={CACHE / 'plans'}"]
        super().__init__(binary, arguments=arguments + ([f"--model={model}"] if model else []))

    def start(self):
        command = [self.binary, "serve", f"--listen=127.0.0.1:{self.port}", "--log=error", *self.arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=end_with_parent)
        try:
            common.wait_for("the server", lambda: not self.alive() or self.status("/readyz") == 200, 60, 0.05)
        except BaseException:
            self.stop()
            raise
        common.check(self.alive(), f"the server does not start: {self.log.read_text()}")

    def alive(self):
        return self.process.poll() is None

    def status(self, path, body=None, headers=None, timeout=15):
        return request(self.port, "POST" if body else "GET", path, body, headers, timeout)[0]

    def memory(self):
        """Returns the resident memory and its peak since `reset_peak`, megabytes."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        sizes = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", text, re.MULTILINE))
        return (int(sizes.get("VmRSS", 0)) / 1024, int(sizes.get("VmHWM", 0)) / 1024)

    def reset_peak(self):
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def panics(self):
        return self.log.read_text(errors="replace").count(" panic ")


def model_224():
    """Writes a model folder with the embedded model's weights and inputs of 224 pixels."""
    embedded, folder = ROOT / "models/ghostnetv2-cifar10", CACHE / "model-224"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("weights.safetensors", "labels.txt"):
        shutil.copyfile(embedded / name, folder / name)
    text = (embedded / "manifest.toml").read_text()
    text = re.sub(r"^source = .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^size = \[64, 64\]", "size = [224, 224]", text, flags=re.MULTILINE)
    text = re.sub(r"^resize = 64", "resize = 256", text, flags=re.MULTILINE)
    (folder / "manifest.toml").write_text(text)
    return folder


# Result of an ordinary client: p99 in milliseconds, numbers of requests and of failed requests, counts by outcome.
ClientResult = collections.namedtuple("ClientResult", "p99 requests failed outcomes")


@contextmanager
def ordinary_client(binary, port, seconds, warm_up=0):
    """A client that sends photographs at random times. Yields a function that waits for its end and returns its result.
    Its first request must succeed, so it has to start before an attack."""
    photos = os.environ.get("PHOTOS") or str(PHOTO)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [binary, "bench", f"--rate={RATE}", f"--duration={seconds}s", f"--warm-up={warm_up}s", "--timeout=5s"]
        command += ["--images", photos, f"--json={report}", f"http://127.0.0.1:{port}{CLASSIFY}"]
        with running(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:

            def result():
                try:
                    process.wait(seconds + warm_up + 30)
                    return read_round(json.loads(report.read_text())["targets"][0]["loads"][0]["rounds"][0])
                except (subprocess.TimeoutExpired, OSError, ValueError):
                    return ClientResult(math.inf, 1, 1, {"no report": 1})

            yield result


def read_round(measurement):
    """Returns the client's result from a round of the report of `ghostserve bench`."""
    outcomes = {**measurement["statuses"], **measurement["errors"]}
    successes = measurement["statuses"].get("200", 0)
    total = sum(outcomes.values())
    p99 = measurement["figures"]["p99"] if successes else math.inf
    return ClientResult(p99, total, total - successes, outcomes)


class ServerMonitor(threading.Thread):
    """Probes /livez ten times per second and watches the server's memory. Kills the server at STOP_GROWTH."""

    def __init__(self, server, before):
        super().__init__(daemon=True)
        self.server, self.before = server, before
        self.slowest, self.peak, self.killed = 0.0, before, False
        self.ended = threading.Event()

    def run(self):
        while not self.ended.is_set():
            start = time.monotonic()
            try:
                self.server.status("/livez", timeout=5)
            except (OSError, http.client.HTTPException):
                # A missing answer counts as at least five seconds, unless the server has ended.
                start = min(start, time.monotonic() - 5) if self.server.alive() else start
            self.slowest = max(self.slowest, time.monotonic() - start)
            self.ended.wait(0.1)

    def guard(self):
        """Watches the memory. A separate thread: a server that does not answer probes may be taking all memory."""
        while not self.ended.wait(0.05):
            try:
                now, peak = self.server.memory()
            except OSError:
                return
            self.peak = max(self.peak, now, peak)
            if self.peak > self.before + STOP_GROWTH and self.server.alive():
                self.killed = True
                self.server.process.kill()

    def __enter__(self):
        self.start()
        self.guard_thread = threading.Thread(target=self.guard, daemon=True)
        self.guard_thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.join()
        self.guard_thread.join()


class Attackers:
    """A process that attacks until it is stopped, or this process ends."""

    def __init__(self, attack, prepared, server, seconds):
        context = multiprocessing.get_context("fork")
        self.stop, (self.result, self.sender) = context.Event(), context.Pipe(False)
        self.arguments = attack, prepared, AttackedServer(server), seconds
        self.process = context.Process(target=self.run, daemon=True)
        self.outcomes = {}

    def run(self):
        attack, prepared, target, seconds = self.arguments
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_with_parent()
        os.nice(19)
        threading.Thread(target=attack.run, args=(target, prepared), daemon=True).start()
        self.stop.wait(seconds)
        with target.lock:
            self.sender.send(dict(target.outcomes))
        os._exit(0)

    def __enter__(self):
        self.process.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        if self.result.poll(10):
            self.outcomes = self.result.recv()
        self.process.join(1)
        self.process.kill()
        self.process.join()


def recovery_failures(server):
    """Returns what does not work after the attack."""
    failures = []
    try:
        if server.status("/livez", timeout=MAX_LIVEZ) != 200:
            failures.append("/livez fails afterwards")
    except (OSError, http.client.HTTPException):
        failures.append("/livez does not answer afterwards")
    photo, end, last = PHOTO.read_bytes(), time.monotonic() + 3, None
    while time.monotonic() < end:
        try:
            last = server.status(CLASSIFY, photo, timeout=3)
            if last == 200:
                return failures
        except (OSError, http.client.HTTPException) as error:
            last = type(error).__name__
        time.sleep(0.1)
    return [*failures, f"no photo is classified afterwards ({last})"]


def request_maps(server):
    """Requests a feature map of the usual size as an ordinary client. Returns the status or the error."""
    try:
        return server.status(MAPS, PHOTO.read_bytes(), {"accept": SAFETENSORS}, timeout=5)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__


def measure(binary, name, attack, seconds, baselines):
    """Makes one attack on a new server. Returns a row of the table. `baselines` has what an ordinary client sees without
    an attack, by whether the model has inputs of 224 pixels; None measures it for this attack."""
    prepared = attack.prepare()
    seconds = max(seconds, attack.seconds)
    server = Server(binary, model_224() if attack.model else None)
    try:
        photo = PHOTO.read_bytes()
        for _ in range(20):
            server.status(CLASSIFY, photo)
        if attack.maps:
            # Sessions for these inputs stay in memory: they must not count as growth.
            for path in (FEATURES, MAPS):
                server.status(path, photo, {"accept": SAFETENSORS})
        baseline = baselines.get(attack.model) if baselines is not None else None
        if baseline is None:
            with ordinary_client(binary, server.port, BASELINE_SECONDS) as result:
                baseline = result()
            if baselines is not None:
                baselines[attack.model] = baseline
        server.reset_peak()
        before = server.memory()[0]
        with ordinary_client(binary, server.port, seconds, warm_up=1) as result:
            time.sleep(0.3)
            attackers, monitor = Attackers(attack, prepared, server, seconds + 60), ServerMonitor(server, before)
            with attackers, monitor:
                attacked = result()
                maps = [request_maps(server) for _ in range(3)] if attack.maps else []
        alive = server.alive()
        failures = recovery_failures(server) if alive else []
        panics = server.panics()
    finally:
        server.stop()
    ratio = attacked.p99 / baseline.p99
    if monitor.killed:
        failures.append("it took so much memory that it was killed")
    elif not alive:
        failures.append(f"the process died ({server.process.returncode})")
    growth = monitor.peak - before
    if growth > attack.growth:
        failures.append(f"memory grew by {growth:.0f} MB")
    if math.isinf(attacked.p99):
        failures.append("no ordinary request was answered")
    slow = []
    if ratio > MAX_RATIO and attacked.p99 > MIN_P99_MS and not math.isinf(attacked.p99):
        slow.append(f"p99 is {ratio:.1f} times as long")
    if alive and monitor.slowest > MAX_LIVEZ:
        slow.append(f"/livez took {monitor.slowest:.1f} s")
    failures += slow
    if attacked.failed > (0 if attack.strict else MAX_FAILED * attacked.requests):
        others = {outcome: count for outcome, count in attacked.outcomes.items() if outcome != "200"}
        failures.append(f"ordinary clients got {others}")
    if any(status != 200 for status in maps):
        failures.append(f"ordinary clients that request feature maps got {maps}")
    failures += unexpected_outcomes(attackers.outcomes, attack.allowed)
    if attacked.outcomes.get("500"):
        failures.append("an ordinary client got an internal error")
    return {
        "attack": name,
        "seen": dict(sorted(attackers.outcomes.items(), key=lambda item: -item[1])),
        "alive": alive,
        "memory_before_mb": round(before),
        "memory_peak_mb": round(monitor.peak),
        "livez_max_ms": round(monitor.slowest * 1e3, 1),
        "p99_without_ms": number(baseline.p99),
        "p99_with_ms": number(attacked.p99),
        "ratio": number(ratio),
        "ordinary": attacked.outcomes,
        "ordinary_failed": attacked.failed,
        "panics": panics,
        "failures": failures,
        "slow": slow,
    }


def unexpected_outcomes(outcomes, allowed):
    """Returns the attackers' outcomes that are not allowed."""
    statuses = [outcome for outcome in outcomes if re.match(r"\d+|grpc|http", outcome)]
    if allowed:
        bad = [outcome for outcome in statuses if outcome.split()[0] not in allowed]
    else:
        bad = [outcome for outcome in statuses if re.match(r"(http )?500|grpc 13", outcome) or "internal" in outcome]
    return [f"the attacker got {outcome}" for outcome in bad]


def number(value):
    return round(value, 1) if math.isfinite(value) else None


# Headings and widths of the columns; a negative width aligns to the left.
COLUMNS = {
    "attack": -21,
    "attacker's outcomes": -48,
    "alive": -5,
    "before MB": 9,
    "peak MB": 7,
    "livez ms": 8,
    "p99 ms": 7,
    "attacked": 8,
    "ratio": 6,
    "failed": 6,
    "result": -1,
}


def line(values):
    """Formats a line of the table from pairs of text and width."""
    cells = (f"{value[: abs(width)]:{'<' if width < 0 else '>'}{abs(width)}}" for value, width in values[:-1])
    return "  ".join([*cells, values[-1][0]])


def show(row):
    """Formats a row as a line of the table."""
    outcomes = ", ".join(f"{outcome} × {count}" for outcome, count in list(row["seen"].items())[:3]) or "nothing"
    result = "FAILED: " + "; ".join(row["failures"]) if row["failures"] else "ok"
    if row["panics"]:
        result += f" ({row['panics']} panics in the log)"
    numbers = ["memory_before_mb", "memory_peak_mb", "livez_max_ms", "p99_without_ms", "p99_with_ms", "ratio"]
    numbers = ["–" if row[name] is None else str(row[name]) for name in numbers]
    alive = "yes" if row["alive"] else "NO"
    cells = [row["attack"], outcomes, alive, *numbers, str(row["ordinary_failed"]), result]
    return line(list(zip(cells, COLUMNS.values())))


def main():
    parser = argparse.ArgumentParser(description="Attacks servers that it starts itself.")
    parser.add_argument("binary", nargs="?")
    parser.add_argument("--seconds", type=int, default=4, help="duration of each attack")
    parser.add_argument("--quick", action="store_true", help="attacks of 2 seconds; one baseline for all attacks on a model")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=ATTACKS)
    parser.add_argument("--list", action="store_true", help="print the attacks and end")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.list:
        for name, attack in ATTACKS.items():
            print(f"{name:<22}{attack.description}")
        return
    if not arguments.binary:
        parser.error("the binary is missing")
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    # The parent process may ignore SIGHUP, and the server would inherit that.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # Ends through SystemExit, so that everything that was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("FAILED: ended by SIGTERM"))
    os.environ.setdefault("GHOSTSERVE_ONNXRUNTIME", str(ROOT / ".runtime/onnxruntime"))
    CACHE.mkdir(exist_ok=True)
    start, rows = time.monotonic(), []
    binary, seconds, baselines = os.path.abspath(arguments.binary), arguments.seconds, None
    if arguments.quick:
        seconds, baselines = 2, {}
    for name in arguments.only or ATTACKS:
        row = measure(binary, name, ATTACKS[name], seconds, baselines)
        # Another process on the machine can slow one attack down. Whatever else fails, fails.
        if row["slow"] and row["slow"] == row["failures"]:
            print(f"{name}: {'; '.join(row['failures'])}; measured again", file=sys.stderr, flush=True)
            row = measure(binary, name, ATTACKS[name], seconds, None)
        rows.append(row)
        print(f"{name}: {'; '.join(rows[-1]['failures']) or 'ok'}", file=sys.stderr, flush=True)
    print(line(list(COLUMNS.items())))
    for row in rows:
        print(show(row))
    failed = [row["attack"] for row in rows if row["failures"]]
    print(f"{len(rows)} attacks in {time.monotonic() - start:.0f} s, {len(failed)} failed")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
