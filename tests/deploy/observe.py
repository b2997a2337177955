#!/usr/bin/env python3
"""Tests Prometheus with deploy/prometheus/rules.yaml on a real server. Every expression of the rules and of the
dashboard must return data. An overload must fire the alerts for it, and none of the unrelated ones.

    observe.py BINARY
"""

import argparse
import json
import math
import re
import secrets
import socket
import subprocess
import tempfile
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from common import DASHBOARD, PHOTO, RULES, Server, check, fail, free_port, metric_names, request, running, tool
from common import wait_for

# Alerts that an overload must fire: shedding, and its consequence.
EXPECTED = {"GhostServeShedding", "GhostServeErrorBudgetBurnFast"}
# Alerts that an overload must not fire.
UNEXPECTED = {"GhostServeDown", "GhostServeAbsent", "GhostServeNotReady", "GhostServeRestarting",
              "GhostServeWorkerRestarts", "GhostServeDecoderPanics", "GhostServeSessionsThrash"}  # fmt: skip


def query(port, expression):
    """Returns the current values of an expression."""
    path = "/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    status, body = request(port, "GET", path)
    answer = json.loads(body)
    check(status == 200, f"{expression}: {answer.get('error')}")
    return [float(sample["value"][1]) for sample in answer["data"]["result"]]


def dashboard_expressions():
    """Yields every expression of the dashboard with its location. Variables select everything, as in Grafana."""
    dashboard = json.loads(DASHBOARD.read_text())
    variables = {"$__rate_interval": "1m", "$job": ".*", "$instance": ".*"}

    def substituted(expression):
        for name, value in variables.items():
            expression = expression.replace(name, value)
        check("$" not in expression, f"unknown variable in {expression}")
        return expression

    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield f"panel `{panel['title']}`", substituted(target["expr"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
            yield f"variable `{variable['name']}`", f"count by ({label}) ({substituted(series)})"


def rule_expressions():
    """Yields every recording rule, and the left side of every comparison in an alert: the comparison itself returns no
    data while its condition is false."""
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                yield f"rule {rule['record']}", rule["record"]
                continue
            for part in re.split(r"\band\b|\bor\b", rule["expr"]):
                part = part.strip()
                part = part[1:] if part.startswith("(") else part
                compared = re.split(r"\s(?:>|<|==)\s", part)[0].strip()
                absent = re.fullmatch(r"absent\((.*)\)", compared)
                yield f"alert {rule['alert']}", absent.group(1) if absent else compared


def send_all_kinds(binary, port):
    """Makes every series appear: all routes and protocols, invalid requests, a client that leaves, a silent client."""
    photo = PHOTO.read_bytes()
    for path, body, expected in [
        ("/v1/classify", photo, 200),
        ("/v1/classify", b"no image", 415),
        ("/v1/features?levels=c3", photo, 200),
        ("/v1/nothing", photo, 404),
    ]:
        status, answer = request(port, "POST", path, body)
        check(status == expected, f"{path}: expected {expected}, found {status}: {answer[:200]}")
    address = ("127.0.0.1", port)
    with socket.create_connection(address) as silent, socket.create_connection(address) as leaver:
        silent.sendall(b"POST /v1/classify HTTP/1.1\r\n")
        leaver.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nnot all of it")
        time.sleep(0.2)
        leaver.close()
        silent.settimeout(10)
        while silent.recv(4096):
            pass
    command = [binary, "bench", f"grpc://127.0.0.1:{port}", "--duration=1s", "--warm-up=0s", "--connections=4"]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def overload(port, stop):
    """Runs many clients that send without pauses."""
    photo = PHOTO.read_bytes()

    def client():
        while not stop.is_set():
            try:
                # Bytes after the image are ignored. They make every file different: no answer comes from the cache.
                request(port, "POST", "/v1/classify", photo + secrets.token_bytes(8))
            except OSError:
                pass

    with ThreadPoolExecutor(48) as pool:
        for _ in range(48):
            pool.submit(client)


def firing(port):
    """Returns the names of the alerts that fire."""
    answer = json.loads(request(port, "GET", "/api/v1/alerts")[1])
    return {alert["labels"]["alertname"] for alert in answer["data"]["alerts"] if alert["state"] == "firing"}


def main():
    parser = argparse.ArgumentParser(description="Has Prometheus watch a server.")
    parser.add_argument("binary")
    arguments = parser.parse_args()
    prometheus = tool("prometheus", "Debian: prometheus")
    # Small limits, so that a few clients are an overload.
    options = ["--cores=1", "--no-calibration", "--response-cache=1MiB", "--header-timeout=1s", "--max-wait=5ms"]
    options += ["--max-images-in-flight=32"]
    server = Server(arguments.binary, arguments=options)
    stop = threading.Event()
    try:
        with tempfile.TemporaryDirectory() as folder:
            targets = [{"targets": [f"127.0.0.1:{server.port}"]}]
            config = {
                "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
                "rule_files": [str(RULES)],
                "scrape_configs": [{"job_name": "ghostserve", "static_configs": targets}],
            }
            Path(folder, "prometheus.yaml").write_text(yaml.safe_dump(config))
            port = free_port()
            command = [
                prometheus, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
            ]  # fmt: skip
            with running(command):
                wait_for("Prometheus", lambda: request(port, "GET", "/-/ready")[0] == 200, 30)
                wait_for("the first scrape", lambda: query(port, "ghostserve_build_info"), 30)
                send_all_kinds(arguments.binary, server.port)
                clients = threading.Thread(target=overload, args=(server.port, stop))
                clients.start()
                others = threading.Thread(target=keep_sending, args=(arguments.binary, server.port, stop))
                others.start()
                watch(port, server)
                stop.set()
                clients.join()
                others.join()
    finally:
        stop.set()
        server.stop()


def keep_sending(binary, port, stop):
    """Repeats the same traffic, some of which is shed: rates need series that grow."""
    while not stop.wait(2):
        try:
            send_all_kinds(binary, port)
        except (SystemExit, OSError):
            pass


def watch(port, server):
    expressions = [*dict.fromkeys([*dashboard_expressions(), *rule_expressions()])]
    missing = []

    def complete():
        missing[:] = [e for e in expressions if not [v for v in query(port, e[1]) if not math.isnan(v)]]
        return not missing

    end = time.monotonic() + 90
    while not complete() and time.monotonic() < end:
        time.sleep(3)
    check(not missing, "no data for\n" + "\n".join(f"  {where}: {expression}" for where, expression in missing))
    print(f"observe: {len(expressions)} expressions of the dashboard and the rules give data on a live server")

    exposed = metric_names(request(server.port, "GET", "/metrics")[1].decode())
    used = {name for _, e in expressions for name in re.findall(r"(?<![\w:])(?:ghostserve|process)_\w+", e)}
    check(used <= exposed, f"metrics that the server does not export: {sorted(used - exposed)}")

    wait_for("the alerts of an overload", lambda: firing(port) >= EXPECTED, 240, pause=2)
    found = firing(port)
    print(f"observe: an overload fires {', '.join(sorted(found))}")
    if found & UNEXPECTED:
        fail(f"fired without a reason: {sorted(found & UNEXPECTED)}")


if __name__ == "__main__":
    main()
