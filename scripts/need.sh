#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# need.sh program:package …: installs the Debian packages of missing programs when run as root, and otherwise says
# which command installs them.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
missing=()
for entry in "$@"; do
    command -v "${entry%%:*}" >/dev/null || missing+=("${entry##*:}")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ]; then
    echo "these Debian packages are missing; install them with: sudo apt-get install ${missing[*]}" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
export RUNLEVEL=1 # packages of daemons start them, but not in single-user mode: it is the programs that are wanted
apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}"
