#!/usr/bin/env bash
# Make the environment in which VLMEvalKit scores: its own packages first, then those of the main environment.
# Usage: bash envs/vlmevalkit.sh MAIN_ENV NEW_ENV. The file NEW_ENV/ready is written last: without it the environment is not whole.
set -euo pipefail

main=$1 new=$2
here=$(cd "$(dirname "$0")" && pwd)

rm -rf "$new"
# Without a pip of its own: pip must not see the main environment's packages as its own to replace, so the path to them is
# added only after the installation.
"$main/bin/python" -m venv --without-pip "$new"
"$main/bin/python" -m pip --python "$new/bin/python" install --quiet --no-deps --requirement "$here/vlmevalkit.txt"

"$new/bin/python" - "$main" "$here/.." <<'PYTHON'
import os, sys, sysconfig
from pathlib import Path

main, repository = map(Path, sys.argv[1:])
own = Path(sysconfig.get_path("purelib"))
shared = main.resolve() / own.relative_to(sys.prefix)
# Relative paths, so that the checkout can be moved. Appended to sys.path: what is installed here comes first.
lines = [os.path.relpath(path.resolve(), own.resolve()) for path in (shared, repository)]
(own / "main_environment.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
PYTHON
touch "$new/ready"
