#!/usr/bin/env python3
"""Tests HAProxy with deploy/haproxy/haproxy.cfg in front of two real servers, under open-loop load. First, both servers
are restarted one after the other: no request may fail. Then one is killed: only the requests in flight on it may fail.

    balance.py BINARY [--seconds 40] [--rate 100]
"""

import argparse
import collections
import csv
import http.client
import os
import random
import signal
import socket
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from common import DEPLOY, PHOTO, Server, check, free_port, request, running, tool, wait_for

# A request: its start and end on the clock of time.monotonic(), and its outcome, a status or an error.
SentRequest = collections.namedtuple("SentRequest", "start end outcome")


class OpenLoop:
    """Sends requests at random times, independent of the earlier ones, each on a new connection, as independent clients
    do."""

    def __init__(self, port, rate):
        self.port, self.rate = port, rate
        self.photo = PHOTO.read_bytes()
        self.sent, self.stopped = [], threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        due = time.monotonic()
        with ThreadPoolExecutor(256) as pool:
            while not self.stopped.is_set():
                due += random.expovariate(self.rate)
                time.sleep(max(0, due - time.monotonic()))
                pool.submit(self.send)

    def send(self):
        start = time.monotonic()
        try:
            outcome = request(self.port, "POST", "/v1/classify", self.photo)[0]
        except (OSError, http.client.HTTPException) as error:
            outcome = repr(error)
        self.sent.append(SentRequest(start, time.monotonic(), outcome))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.thread.join()

    def failures(self):
        return [sent for sent in self.sent if sent.outcome != 200]


def server_state(statistics, name):
    """Returns HAProxy's status of a server and the number of requests in flight on it."""
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(statistics)
        s.sendall(b"show stat\n")
        text = b"".join(iter(lambda: s.recv(65536), b"")).decode()
    rows = csv.DictReader(text.lstrip("# ").splitlines())
    row = next(row for row in rows if (row["pxname"], row["svname"]) == ("servers", name))
    return row["status"].split()[0], int(row["scur"])


def main():
    parser = argparse.ArgumentParser(description="Restarts and kills servers behind HAProxy.")
    parser.add_argument("binary")
    parser.add_argument("--seconds", type=float, default=40, help="duration of the load during the restarts")
    parser.add_argument("--rate", type=float, default=100, help="requests per second")
    arguments = parser.parse_args()
    haproxy = tool("haproxy", "Debian: haproxy")
    # Two servers share the machine with the load generator.
    options = ["--cores=1", "--no-calibration"]
    servers = {name: Server(arguments.binary, arguments=options) for name in "ab"}
    ports = {"": free_port(), "_GRPC": free_port(), "_METRICS": free_port()}
    environment = dict(os.environ)
    environment |= {f"GHOSTSERVE_BIND{name}": f"127.0.0.1:{port}" for name, port in ports.items()}
    environment |= {f"GHOSTSERVE_{name.upper()}": f"127.0.0.1:{server.port}" for name, server in servers.items()}
    try:
        with tempfile.TemporaryDirectory() as folder:
            # Adds a statistics socket to the configuration that users get.
            statistics = f"{folder}/statistics"
            extra = f"{folder}/extra.cfg"
            with open(extra, "w") as file:
                file.write(f"global\n    stats socket {statistics} mode 600 level user\n")
            command = [haproxy, "-f", str(DEPLOY / "haproxy/haproxy.cfg"), "-f", extra]
            with running(command, env=environment, stdout=subprocess.DEVNULL):
                port = ports[""]
                wait_for("HAProxy", lambda: request(port, "GET", "/readyz")[0] == 200, 20)
                for name in servers:
                    wait_for(f"server {name} behind it", lambda: server_state(statistics, name)[0] == "UP", 20)
                check(request(port, "GET", "/metrics")[0] == 404, "clients do not get the metrics")
                metrics = request(ports["_METRICS"], "GET", "/metrics")[1]
                check(b"haproxy_server_status" in metrics, "Prometheus gets HAProxy's metrics")
                restart_all(servers, statistics, port, arguments)
                kill_one(servers["a"], statistics, port, arguments)
    finally:
        for server in servers.values():
            server.stop()


def restart_all(servers, statistics, port, arguments):
    start = time.monotonic()
    with OpenLoop(port, arguments.rate) as load:
        time.sleep(2)
        for name, server in servers.items():
            server.restart()
            wait_for(f"server {name} to be back", lambda: server_state(statistics, name)[0] == "UP", 20)
            time.sleep(2)
        time.sleep(max(0, arguments.seconds - (time.monotonic() - start)))
    failures = load.failures()
    seconds = time.monotonic() - start
    print(f"rolling restart: {len(load.sent)} requests in {seconds:.0f} s, {len(failures)} failed")
    check(not failures, f"no request may fail: {failures[:5]}")
    check(len(load.sent) > 0.8 * arguments.rate * seconds, "the load generator reached the requested rate")


def kill_one(server, statistics, port, arguments):
    with OpenLoop(port, arguments.rate) as load:
        time.sleep(3)
        killed = time.monotonic()
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        ended = time.monotonic()
        wait_for("HAProxy to notice", lambda: server_state(statistics, "a")[0] == "DOWN", 10, pause=0.05)
        noticed = time.monotonic()
        time.sleep(5)
    failures = load.failures()
    in_flight = [sent for sent in load.sent if sent.start <= ended and sent.end >= killed]
    print(
        f"kill -9: {len(load.sent)} requests, {len(failures)} failed of {len(in_flight)} in flight at that moment; "
        f"noticed after {noticed - killed:.1f} s"
    )
    for lost in failures:
        later = lost.start - ended
        check(lost in in_flight, f"only requests in flight may fail, not one that started {later:.3f} s later: {lost}")
    check(not [lost for lost in failures if lost.start > noticed], "no request is lost after HAProxy has noticed")


if __name__ == "__main__":
    main()
