"""Shared by the checks of deploy/: a server process, requests, waiting. Needs only Python's standard library."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus/rules.yaml"
DASHBOARD = DEPLOY / "grafana/ghostserve.json"
PHOTO = ROOT / "tests/goldens/images/jpeg-large.jpg"


def fail(message):
    sys.exit(f"FAILED: {message}")


def check(condition, message):
    if not condition:
        fail(message)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what, condition, seconds, pause=0.2):
    """Waits until `condition` returns a true value, and returns that. Network errors count as false."""
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            last = condition()
            if last:
                return last
        except (OSError, http.client.HTTPException) as error:
            last = error
        time.sleep(pause)
    fail(f"waited {seconds} s for {what} (last: {last})")


def request(port, method, path, body=None, headers=None, timeout=15):
    """Makes a request. Returns the status and the body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


class Server:
    """A process of `ghostserve serve` on a port."""

    def __init__(self, binary, port=None, arguments=()):
        self.binary, self.port, self.arguments = binary, port or free_port(), list(arguments)
        self.process = None
        self.start()

    def start(self):
        command = [self.binary, "serve", f"--listen=127.0.0.1:{self.port}", "--log=warn", *self.arguments]
        self.process = subprocess.Popen(command)
        wait_for("the server", lambda: request(self.port, "GET", "/readyz")[0] == 200, 60)

    def restart(self):
        """Restarts as an orchestrator does: SIGTERM, wait for the server to drain, start a new one."""
        self.process.send_signal(signal.SIGTERM)
        check(self.process.wait(40) == 0, "a drained server exits with status 0")
        self.start()

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextmanager
def running(command, **kwargs):
    """Runs a process and ends it afterwards."""
    process = subprocess.Popen(command, **kwargs)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()


def tool(name, package):
    """Returns the path of a program. Fails if it is missing: a check must not be skipped silently."""
    for folder in [str(Path(sys.executable).parent), *os.environ["PATH"].split(os.pathsep), "/usr/sbin"]:
        if os.access(os.path.join(folder, name), os.X_OK):
            return os.path.join(folder, name)
    fail(f"{name} is missing; install it ({package})")


def metric_names(text):
    """Returns the names of the series in Prometheus' text format."""
    return set(re.findall(r"^([a-z_]+)(?:\{| )", text, re.MULTILINE))
