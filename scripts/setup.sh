#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Makes .venv with the pinned dependencies and the command .venv/bin/postbackd. Installs missing Debian packages
# when run as root, and otherwise says which command installs them. Does nothing when all is there already.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
stamp=.venv/.installed
wanted=$(cat requirements.lock pyproject.toml | sha256sum)

missing=()
command -v cc >/dev/null || missing+=(gcc libc6-dev)
[ -e /usr/include/ev.h ] || missing+=(libev-dev)
command -v "$python" >/dev/null || missing+=(python3)
has_python() { command -v "$python" >/dev/null && "$python" -c "$1" >/dev/null 2>&1; }
has_python 'import ensurepip, venv' || missing+=(python3-venv)
has_python 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' || missing+=(python3-dev)

if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" != 0 ]; then
        echo "setup: these Debian packages are missing; install them with: sudo apt-get install ${missing[*]}" >&2
        exit 1
    fi
    echo "setup: installing Debian packages: ${missing[*]} …"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}"
fi

if ! has_python 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup: $python is older than Python 3.11; name a newer one: make setup PYTHON=python3.11" >&2
    exit 1
fi

if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit 0
fi
# What is there already is kept: a changed lock costs what has changed (make clean forgets what it has no more).
if ! .venv/bin/python -c 'import pip' 2>/dev/null; then
    echo "setup: making .venv with $("$python" --version) …"
    "$python" -m venv --clear .venv
fi
echo "setup: installing $(grep -c '==' requirements.lock) packages into .venv, which may take a few minutes …"
.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
# With the pinned setuptools, not whatever is newest today.
.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
echo "$wanted" >"$stamp"
echo "setup: done"
