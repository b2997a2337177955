"""The crates that a build of the server contains, their licences, and a bill of materials.

Reads Cargo.lock and the sources that cargo has fetched; uses no network. Equal sources give equal output.
"""

import functools
import hashlib
import json
import re
import subprocess
import tomllib
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LICENCE_FILE = re.compile(r"(licen[cs]e|copying|copyright|unlicense|notice)\b.*", re.IGNORECASE)
NOT_TEXT = {".rs", ".py", ".toml", ".html"}


@dataclass
class Crate:
    """A package of Cargo.lock. `texts` has its licence files by name; `uses` the names and versions it depends on."""

    name: str
    version: str
    licence: str
    repository: str
    folder: Path
    own: bool
    checksum: str | None
    texts: dict = field(default_factory=dict)
    uses: list = field(default_factory=list)

    @property
    def purl(self):
        return f"pkg:cargo/{self.name}@{self.version}"


def cargo(*arguments):
    done = subprocess.run(["cargo", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: cargo {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def linked(target):
    """Returns name and version of every crate that a build for `target` contains, macros included."""
    tree = ["tree", "--locked", "--package=ghostserve", "--edges=normal", "--prefix=none", "--format={p}"]
    lines = cargo(*tree, f"--target={target}").splitlines()
    return {(name, version.removeprefix("v")) for name, version, *_ in (line.split() for line in lines if line)}


@functools.cache
def read(target):
    """Returns the crates of a build for `target`, such as `x86_64-unknown-linux-gnu`, sorted by name and version."""
    wanted = linked(target)
    metadata = json.loads(cargo("metadata", "--locked", "--format-version=1", f"--filter-platform={target}"))
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    checksums = {(p["name"], p["version"]): p.get("checksum") for p in lock["package"]}
    crates, keys = {}, {}
    for package in metadata["packages"]:
        key = (package["name"], package["version"])
        keys[package["id"]] = key
        if key in wanted:
            crates[key] = Crate(
                *key, spdx(package["license"]), package["repository"] or "",
                Path(package["manifest_path"]).parent, package["source"] is None, checksums.get(key),
            )  # fmt: skip
            crates[key].texts = licence_files(crates[key].folder, package["license_file"])
    missing = wanted - set(crates)
    if missing:
        raise SystemExit(f"error: cargo metadata lacks {sorted(missing)}")
    for node in metadata["resolve"]["nodes"]:
        if keys[node["id"]] in crates:
            used = {keys[dependency["pkg"]] for dependency in node["deps"] if normal(dependency)}
            crates[keys[node["id"]]].uses = sorted(used & wanted)
    return [crates[key] for key in sorted(crates)]


def spdx(expression):
    """Returns a licence expression in today's form: older crates write `MIT/Apache-2.0`."""
    return " ".join((expression or "").replace("/", " OR ").split())


def normal(dependency):
    return any(kind["kind"] is None for kind in dependency["dep_kinds"])


def licence_files(folder, declared):
    """Returns the texts of a crate's licence files by name."""
    names = {p.name for p in folder.iterdir() if LICENCE_FILE.fullmatch(p.name) and p.suffix.lower() not in NOT_TEXT}
    names |= {declared} if declared else set()
    files = {name: folder / name for name in sorted(names)}
    # Some crates have a folder of licences.
    files |= {f"{p.parent.name}/{p.name}": p for p in sorted(folder.glob("[Ll][Ii][Cc][Ee][NnSs][SsCc][Ee][Ss]/*"))}
    return {name: path.read_text(errors="replace").strip() for name, path in files.items() if path.is_file()}


def licences(target):
    """Returns one text with the licences of all crates of others. Equal texts appear once, with the crates they are of.

    A crate whose package has no licence file is listed under the texts of its declared licences that other crates have.
    """
    others = [crate for crate in read(target) if not crate.own]
    users, titles = {}, {}
    for crate in others:
        for name, text in crate.texts.items():
            users.setdefault(normalized(text), []).append(f"{crate.name} {crate.version}")
            titles.setdefault(normalized(text), text)
    bare = [crate for crate in others if not crate.texts]
    for crate in bare:
        text = standard_text(crate, others)
        if text is None:
            raise SystemExit(
                f"error: {crate.name} {crate.version} has no licence file, and no other crate has the text of "
                f"{crate.licence or 'its licence'}; add it to deploy/dist/crates.py"
            )
        users[normalized(text)].append(f"{crate.name} {crate.version} (declared; its package has no licence file)")
    head = "Licences of the Rust crates in the program ghostserve. Its own licence is in LICENSE or copyright,\n"
    head += "that of ONNX Runtime in the folder onnxruntime.\n\n"
    width = max(len(f"{crate.name} {crate.version}") for crate in others)
    for crate in others:
        head += f"{crate.name + ' ' + crate.version:{width}}  {crate.licence or 'see its file'}\n"
    parts = [head]
    for key in sorted(users, key=lambda key: (-len(users[key]), users[key])):
        names = ", ".join(sorted(set(users[key])))
        parts.append(f"{'=' * 100}\n{names}\n{'-' * 100}\n\n{titles[key]}\n")
    return "\n".join(parts)


def normalized(text):
    return re.sub(r"\s+", " ", text).strip()


def standard_text(crate, crates):
    """Returns the text of one of the licences that `crate` declares, taken from a crate of the same repository if there
    is one."""
    options = [part.strip(" ()") for part in re.split(r"\bOR\b", crate.licence)]
    # Apache-2.0 first: its text names no author, so that of another crate is this crate's, too.
    for option in sorted(options, key=lambda option: option != "Apache-2.0"):
        for other in sorted(crates, key=lambda other: other.repository != crate.repository):
            for name, text in other.texts.items():
                short = option.split("-")[0].lower()
                if other.licence == option or (option in other.licence and short in name.lower()):
                    return text
    return None


def bill_of_materials(target, version, timestamp, runtime):
    """Returns the bill of materials as CycloneDX 1.5.

    `timestamp` is in seconds; `runtime` is (name, version, SHA-256 of the wheel) of ONNX Runtime.
    """
    crates = read(target)
    root = next(crate for crate in crates if crate.name == "ghostserve")
    main = component(root) | {"type": "application"}
    name, number, sha256 = runtime
    library = {
        "type": "library", "bom-ref": f"pkg:pypi/{name}@{number}", "name": name, "version": number,
        "purl": f"pkg:pypi/{name}@{number}", "licenses": [{"license": {"id": "MIT"}}],
        "hashes": [{"alg": "SHA-256", "content": sha256}],
    }  # fmt: skip
    dependencies = [
        {"ref": crate.purl, "dependsOn": [f"pkg:cargo/{n}@{v}" for n, v in crate.uses]} for crate in crates
    ]
    dependencies[crates.index(root)]["dependsOn"].append(library["bom-ref"])
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(timestamp, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": main | {"version": version},
            "properties": [{"name": "target", "value": target}],
        },
        "components": [component(crate) for crate in crates if crate is not root] + [library],
        "dependencies": dependencies + [{"ref": library["bom-ref"], "dependsOn": []}],
    }
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).digest()
    serial = uuid.UUID(bytes=digest[:16], version=4)
    return json.dumps({"serialNumber": f"urn:uuid:{serial}"} | document, indent=1) + "\n"


def component(crate):
    result = {"type": "library", "bom-ref": crate.purl, "name": crate.name, "version": crate.version}
    result |= {"purl": crate.purl}
    if crate.licence:
        result |= {"licenses": [{"expression": crate.licence}]}
    if crate.checksum:
        result |= {"hashes": [{"alg": "SHA-256", "content": crate.checksum}]}
    if crate.repository:
        result |= {"externalReferences": [{"type": "vcs", "url": crate.repository}]}
    return result
