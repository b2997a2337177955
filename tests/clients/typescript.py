"""Generates the types of a running server with openapi-typescript, checks a program that uses them, and runs it.

usage: typescript.py NODE_MODULES URL PHOTO, where NODE_MODULES is what `npm ci` installs from typescript/package-lock.json. The
program prints the best label of the photograph.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parent / "typescript"


def main() -> None:
    packages, url, photo = Path(sys.argv[1]).resolve(), sys.argv[2], str(Path(sys.argv[3]).resolve())
    with tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", "tsconfig.json", "generate.js", "classify.ts"):
            shutil.copy(SOURCE / name, folder)
        (Path(folder) / "node_modules").symlink_to(packages, target_is_directory=True)
        for command in (
            ["node", "generate.js", url],
            ["node", str(packages / "typescript/bin/tsc"), "--project", "."],
            ["node", "built/classify.js", url, photo],
        ):
            done = subprocess.run(command, cwd=folder, text=True, capture_output=True)
            assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        print(done.stdout, end="")


if __name__ == "__main__":
    main()
