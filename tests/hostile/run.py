#!/usr/bin/env python3
"""Attacks servers that it starts itself, and checks for each attack what an ordinary client notices, how much memory
the server takes, and that it still works afterwards.

    run.py BINARY [--seconds 4] [--only NAME ...] [--list] [--json FILE]

The attackers come from 127.0.0.2 and ordinary clients from 127.0.0.1. The attackers stand for other machines, so they
run in a process that gets what the server leaves of the processor. PHOTOS names a folder of photographs for the
ordinary client. ONNX Runtime is looked for in .runtime, or where GHOSTSERVE_ONNXRUNTIME says.
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
from attacks import ATTACKS, CLASSIFY, FEATURES, MAPS, SAFETENSORS, Target
from common import PHOTO, ROOT, request, running

# What fails an attack. A ratio of two small numbers says nothing, so the 99th percentile must also be above a time.
MAX_RATIO = 3
MIN_P99_MS = 60
# Of an ordinary client's requests.
MAX_FAILED = 0.01
# Megabytes beside what the server had before the attack. Past this it is killed, to protect the machine.
STOP_GROWTH = 4000
# Seconds that /livez may take, during the attack and after it. A burst of connections may cost the probe its first SYN,
# which the system sends again after a second.
MAX_LIVEZ = 1.5

RATE = 40
BASELINE_SECONDS = 2
CACHE = Path(tempfile.gettempdir()) / "ghostserve-hostile"


def end_with_parent():
    """Has Linux kill this process when its parent is gone (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Server(common.Server):
    """One whose log is kept."""

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
        """Megabytes: resident now, and at most since `forget`."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", text, re.MULTILINE))
        return (int(found.get("VmRSS", 0)) / 1024, int(found.get("VmHWM", 0)) / 1024)

    def forget(self):
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def panics(self):
        return self.log.read_text(errors="replace").count(" panic ")


def model_224():
    """The embedded model's weights in a model folder with inputs of 224 pixels."""
    own, folder = ROOT / "models/ghostnetv2-cifar10", CACHE / "model-224"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("weights.safetensors", "labels.txt"):
        shutil.copyfile(own / name, folder / name)
    text = (own / "manifest.toml").read_text()
    text = re.sub(r"^source = .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^size = \[64, 64\]", "size = [224, 224]", text, flags=re.MULTILINE)
    text = re.sub(r"^resize = 64", "resize = 256", text, flags=re.MULTILINE)
    (folder / "manifest.toml").write_text(text)
    return folder


Load = collections.namedtuple("Load", "p99 requests failed outcomes")


@contextmanager
def ordinary_client(binary, port, seconds, warm_up=0):
    """One that sends photographs at random times. Gives a function that waits for its end and says what it saw. Its
    first request must succeed, so it has to start before an attack."""
    photos = os.environ.get("PHOTOS") or str(PHOTO)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [binary, "bench", f"--rate={RATE}", f"--duration={seconds}s", f"--warm-up={warm_up}s", "--timeout=5s"]
        command += ["--images", photos, f"--json={report}", f"http://127.0.0.1:{port}{CLASSIFY}"]
        with running(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:

            def result():
                try:
                    process.wait(seconds + warm_up + 30)
                    return read(json.loads(report.read_text())["targets"][0]["loads"][0]["rounds"][0])
                except (subprocess.TimeoutExpired, OSError, ValueError):
                    return Load(math.inf, 1, 1, {"no report": 1})

            yield result


def read(found):
    outcomes = {**found["statuses"], **found["errors"]}
    good = found["statuses"].get("200", 0)
    total = sum(outcomes.values())
    return Load(found["figures"]["p99"] if good else math.inf, total, total - good, outcomes)


class Watch(threading.Thread):
    """Asks ten times a second whether the server is alive, and looks at its memory. Kills it when that is dangerous."""

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
                # No answer is the longest there can be, unless the server is gone.
                start = min(start, time.monotonic() - 5) if self.server.alive() else start
            self.slowest = max(self.slowest, time.monotonic() - start)
            self.ended.wait(0.1)

    def guard(self):
        """In a thread of its own: a server that does not answer may be the one that takes all memory."""
        while not self.ended.wait(0.05):
            try:
                now, highest = self.server.memory()
            except OSError:
                return
            self.peak = max(self.peak, now, highest)
            if self.peak > self.before + STOP_GROWTH and self.server.alive():
                self.killed = True
                self.server.process.kill()

    def __enter__(self):
        self.start()
        self.guarding = threading.Thread(target=self.guard, daemon=True)
        self.guarding.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.join()
        self.guarding.join()


class Attackers:
    """A process that attacks until it is ended; it ends with this one at the latest."""

    def __init__(self, chosen, prepared, server, seconds):
        context = multiprocessing.get_context("fork")
        self.stop, (self.result, self.sender) = context.Event(), context.Pipe(False)
        self.arguments = chosen, prepared, Target(server), seconds
        self.process = context.Process(target=self.run, daemon=True)
        self.seen = {}

    def run(self):
        chosen, prepared, target, seconds = self.arguments
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        end_with_parent()
        os.nice(19)
        threading.Thread(target=chosen.run, args=(target, prepared), daemon=True).start()
        self.stop.wait(seconds)
        with target.lock:
            self.sender.send(dict(target.seen))
        os._exit(0)

    def __enter__(self):
        self.process.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        if self.result.poll(10):
            self.seen = self.result.recv()
        self.process.join(1)
        self.process.kill()
        self.process.join()


def recovered(server):
    """What does not work once the attack is over."""
    wrong = []
    try:
        if server.status("/livez", timeout=MAX_LIVEZ) != 200:
            wrong.append("/livez fails afterwards")
    except (OSError, http.client.HTTPException):
        wrong.append("/livez does not answer afterwards")
    photo, end, last = PHOTO.read_bytes(), time.monotonic() + 3, None
    while time.monotonic() < end:
        try:
            last = server.status(CLASSIFY, photo, timeout=3)
            if last == 200:
                return wrong
        except (OSError, http.client.HTTPException) as error:
            last = type(error).__name__
        time.sleep(0.1)
    return [*wrong, f"no photo is classified afterwards ({last})"]


def wants_maps(server):
    """What an ordinary client sees that asks for a feature map of the usual size."""
    try:
        return server.status(MAPS, PHOTO.read_bytes(), {"accept": SAFETENSORS}, timeout=5)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__


def measure(binary, name, chosen, seconds):
    """Makes one attack on a new server. Gives a row of the table."""
    prepared = chosen.prepare()
    seconds = max(seconds, chosen.seconds)
    server = Server(binary, model_224() if chosen.model else None)
    try:
        photo = PHOTO.read_bytes()
        for _ in range(20):
            server.status(CLASSIFY, photo)
        if chosen.maps:
            # What the server keeps for such inputs is part of what it had before.
            for path in (FEATURES, MAPS):
                server.status(path, photo, {"accept": SAFETENSORS})
        with ordinary_client(binary, server.port, BASELINE_SECONDS) as result:
            without = result()
        server.forget()
        before = server.memory()[0]
        with ordinary_client(binary, server.port, seconds, warm_up=1) as result:
            time.sleep(0.3)
            with Attackers(chosen, prepared, server, seconds + 60) as attackers, Watch(server, before) as watch:
                during = result()
                maps = [wants_maps(server) for _ in range(3)] if chosen.maps else []
        alive = server.alive()
        wrong = recovered(server) if alive else []
        panics = server.panics()
    finally:
        server.stop()
    ratio = during.p99 / without.p99
    if watch.killed:
        wrong.append("it took so much memory that it was killed")
    elif not alive:
        wrong.append(f"the process died ({server.process.returncode})")
    growth = watch.peak - before
    if growth > chosen.growth:
        wrong.append(f"memory grew by {growth:.0f} MB")
    if math.isinf(during.p99):
        wrong.append("no ordinary request was answered")
    elif ratio > MAX_RATIO and during.p99 > MIN_P99_MS:
        wrong.append(f"p99 is {ratio:.1f} times as long")
    if alive and watch.slowest > MAX_LIVEZ:
        wrong.append(f"/livez took {watch.slowest:.1f} s")
    if during.failed > (0 if chosen.strict else MAX_FAILED * during.requests):
        others = {what: count for what, count in during.outcomes.items() if what != "200"}
        wrong.append(f"ordinary clients got {others}")
    if any(status != 200 for status in maps):
        wrong.append(f"ordinary clients that want feature maps got {maps}")
    wrong += unwelcome(attackers.seen, chosen.allowed)
    if during.outcomes.get("500"):
        wrong.append("an ordinary client got an internal error")
    return {
        "attack": name,
        "seen": dict(sorted(attackers.seen.items(), key=lambda item: -item[1])),
        "alive": alive,
        "memory_before_mb": round(before),
        "memory_peak_mb": round(watch.peak),
        "livez_max_ms": round(watch.slowest * 1e3, 1),
        "p99_without_ms": number(without.p99),
        "p99_with_ms": number(during.p99),
        "ratio": number(ratio),
        "ordinary": during.outcomes,
        "ordinary_failed": during.failed,
        "panics": panics,
        "failures": wrong,
    }


def unwelcome(seen, allowed):
    """What the attackers saw and should not have seen."""
    statuses = [what for what in seen if re.match(r"\d+|grpc|http", what)]
    if allowed:
        bad = [what for what in statuses if what.split()[0] not in allowed]
    else:
        bad = [what for what in statuses if re.match(r"(http )?500|grpc 13", what) or "internal" in what]
    return [f"the attacker got {what}" for what in bad]


def number(value):
    return round(value, 1) if math.isfinite(value) else None


# Headings, and how wide the columns are.
COLUMNS = {
    "attack": -21,
    "the attacker saw": -48,
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
    cells = (f"{value[: abs(width)]:{'<' if width < 0 else '>'}{abs(width)}}" for value, width in values[:-1])
    return "  ".join([*cells, values[-1][0]])


def show(row):
    """One line of the table."""
    seen = ", ".join(f"{what} × {count}" for what, count in list(row["seen"].items())[:3]) or "nothing"
    result = "FAILED: " + "; ".join(row["failures"]) if row["failures"] else "ok"
    if row["panics"]:
        result += f" ({row['panics']} panics in the log)"
    numbers = ["memory_before_mb", "memory_peak_mb", "livez_max_ms", "p99_without_ms", "p99_with_ms", "ratio"]
    numbers = ["–" if row[name] is None else str(row[name]) for name in numbers]
    alive = "yes" if row["alive"] else "NO"
    cells = [row["attack"], seen, alive, *numbers, str(row["ordinary_failed"]), result]
    return line(list(zip(cells, COLUMNS.values())))


def main():
    parser = argparse.ArgumentParser(description="Attacks a server of its own.")
    parser.add_argument("binary", nargs="?")
    parser.add_argument("--seconds", type=int, default=4, help="of each attack")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=ATTACKS)
    parser.add_argument("--list", action="store_true", help="print the attacks and end")
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.list:
        for name, chosen in ATTACKS.items():
            print(f"{name:<22}{chosen.what}")
        return
    if not arguments.binary:
        parser.error("which binary?")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Whoever started this may ignore the signal, and the server would inherit that.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # So that all that was started ends, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("FAILED: ended by SIGTERM"))
    os.environ.setdefault("GHOSTSERVE_ONNXRUNTIME", str(ROOT / ".runtime/onnxruntime"))
    CACHE.mkdir(exist_ok=True)
    start, rows = time.monotonic(), []
    for name in arguments.only or ATTACKS:
        rows.append(measure(os.path.abspath(arguments.binary), name, ATTACKS[name], arguments.seconds))
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
