#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# install.sh install|uninstall: puts what `make dist` built where Debian expects it. DESTDIR is put before every path;
# without it the user, the state directories and the boot links are made too, and systemd is told. Safe to repeat: an
# edited configuration is kept, and the release that runs now stays until the daemon is restarted.
#
#   /opt/postbackd/releases/<version>-<hash>   a venv with the pinned dependencies; /opt/postbackd/current points to one
#   /etc/postbackd/                            postbackd.toml, valkey.conf (0640 root:postbackd)
#   /var/lib/postbackd, /var/log/postbackd     its state (0700) and logs (0750)
#   /usr/lib/systemd/system, /etc/init.d, /etc/default, /etc/logrotate.d, /usr/lib/{sysusers,tmpfiles}.d
#   /usr/local/bin/postbackd                   the command
set -euo pipefail
umask 022 # the service has to read what root installs
cd "$(dirname "$0")/.."

root=${DESTDIR:-}
python=${PYTHON:-/usr/bin/python3} # the system's: a service must not hang on somebody's own
home=/opt/postbackd
units=(postbackd.service postbackd.socket postbackd.target postbackd-valkey.service
    postbackd-ingest@.service postbackd-deliver@.service)

say() { printf '%s\n' "install: $*"; }
put() { # mode source target
    install -D -m "$1" "$2" "$root$3"
}
put_once() { # mode source target: what is there stays; what came new lies beside it
    if [ ! -e "$root$3" ]; then
        put "$1" "$2" "$3"
    elif ! cmp -s "$2" "$root$3"; then
        put "$1" "$2" "$3.new"
        say "kept $root$3; the new one is $3.new"
    fi
}
systemd_runs() { [ -z "$root" ] && [ -d /run/systemd/system ]; }
has() { command -v "$1" >/dev/null; }

need_packages() {
    local missing=()
    command -v cc >/dev/null || missing+=(gcc libc6-dev)
    [ -e /usr/include/ev.h ] || missing+=(libev-dev)
    [ -x "$python" ] || missing+=(python3)
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
        missing+=(python3-dev)
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" != 0 ]; then
        say "these Debian packages are missing: sudo apt-get install ${missing[*]}" >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}"
}

make_user() {
    getent group postbackd >/dev/null || groupadd --system postbackd
    getent passwd postbackd >/dev/null || useradd --system --gid postbackd --home-dir /var/lib/postbackd \
        --no-create-home --shell /usr/sbin/nologin postbackd
}

# A venv knows its own path. Built under DESTDIR, its scripts are told the path that they will have.
install_release() {
    local wheel release folder
    wheel=$(echo dist/postbackd-*.whl)
    release=$(basename "$wheel" -py3-none-any.whl)
    release=${release#postbackd-}-$(cat "$wheel" dist/requirements.lock | sha256sum | cut -c1-8)
    folder=$home/releases/$release
    if [ ! -e "$root$folder/.complete" ]; then
        rm -rf "$root$folder"
        mkdir -p "$root$home/releases"
        "$python" -m venv "$root$folder"
        "$root$folder/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r dist/requirements.lock
        "$root$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps "$wheel"
        if [ -n "$root" ]; then
            grep -rlI "$root$folder" "$root$folder/bin" "$root$folder/pyvenv.cfg" |
                xargs -r sed -i "s|$root$folder|$folder|g"
        fi
        "$root$folder/bin/python" -m compileall -q -s "$root" "$root$folder/lib" || true
        touch "$root$folder/.complete"
    fi
    if [ "$(readlink "$root$home/current" || true)" != "releases/$release" ]; then
        [ ! -e "$root$home/current" ] || ln -sfn "$(readlink "$root$home/current")" "$root$home/previous"
        ln -s "releases/$release" "$root$home/current.new"
        mv -T "$root$home/current.new" "$root$home/current"
    fi
    # Kept: the one in use, and the one before it, which a daemon that was not restarted still reads.
    local kept old
    kept="$(readlink "$root$home/current") $(readlink "$root$home/previous" || true)"
    for old in "$root$home"/releases/*; do
        case " $kept " in
            *" releases/$(basename "$old") "*) ;;
            *) rm -rf "$old" ;;
        esac
    done
    mkdir -p "$root/usr/local/bin"
    ln -sfn "$home/current/bin/postbackd" "$root/usr/local/bin/postbackd"
}

install_configuration() {
    local draft
    draft=$(mktemp -d)
    "$root$home/current/bin/python" -m postbackd.cli config --set data_dir=/var/lib/postbackd \
        --set log.path=/var/log/postbackd/deliveries.jsonl >"$draft/postbackd.toml"
    put_once 0640 "$draft/postbackd.toml" /etc/postbackd/postbackd.toml
    sed "s/@PASSWORD@/$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')/" init/valkey.conf >"$draft/valkey.conf"
    [ -e "$root/etc/postbackd/valkey.conf" ] || put 0640 "$draft/valkey.conf" /etc/postbackd/valkey.conf
    rm -rf "$draft"
    chmod 0750 "$root/etc/postbackd"
}

install_files() {
    local unit
    for unit in "${units[@]}"; do
        put 0644 "init/$unit" "/usr/lib/systemd/system/$unit"
    done
    put 0755 init/postbackd.init /etc/init.d/postbackd
    put_once 0644 init/postbackd.default /etc/default/postbackd
    put_once 0644 init/postbackd-deliver.default /etc/default/postbackd-deliver
    put_once 0644 etc/logrotate /etc/logrotate.d/postbackd
    put 0644 init/postbackd.sysusers /usr/lib/sysusers.d/postbackd.conf
    put 0644 init/postbackd.tmpfiles /usr/lib/tmpfiles.d/postbackd.conf
    install -d "$root/usr/share/doc/postbackd"
    # In one folder: README's links lose theirs.
    install -m 0644 README.md CHANGELOG.md CONTRIBUTING.md LICENSE docs/*.md docs/openapi.yaml etc/nginx.conf \
        "$root/usr/share/doc/postbackd/"
    sed -i 's|](docs/|](|g; s|etc/nginx.conf|nginx.conf|; s|are in .etc/.|lie beside it|' \
        "$root/usr/share/doc/postbackd/README.md"
    install -D -m 0644 -t "$root/usr/share/doc/postbackd/img" docs/img/*
    put 0644 etc/grafana/dashboard.json /usr/share/doc/postbackd/grafana/dashboard.json
    put 0644 etc/prometheus/alerts.yml /usr/share/doc/postbackd/prometheus/alerts.yml
    sed -i 's|\(runbook_url: \)docs/|\1/usr/share/doc/postbackd/|' "$root/usr/share/doc/postbackd/prometheus/alerts.yml"
    install -d -m 0700 "$root/var/lib/postbackd"
    install -d -m 0750 "$root/var/log/postbackd"
}

own_files() {
    chown root:postbackd /etc/postbackd /etc/postbackd/*
    chmod 0640 /etc/postbackd/*
    chown postbackd:postbackd /var/lib/postbackd /var/log/postbackd
}

# With systemd in the machine, whether it runs now (an image is being made) or not; and for other inits.
start_at_boot() {
    if systemd_runs; then
        systemctl daemon-reload
    fi
    if has systemctl; then
        systemctl enable --quiet postbackd.service
    fi
    if has update-rc.d; then
        update-rc.d postbackd defaults >/dev/null
    elif ! has systemctl; then
        say "neither systemd nor update-rc.d here: start /etc/init.d/postbackd at boot yourself"
    fi
}

# Also what the operator enabled: instances, the socket, the queue server.
forget_at_boot() {
    local link
    if systemd_runs; then
        systemctl stop 'postbackd.*' 'postbackd-ingest@*' 'postbackd-deliver@*' 'postbackd-valkey.*' # those there are
    elif [ -x /etc/init.d/postbackd ]; then
        /etc/init.d/postbackd stop
    fi
    for link in /etc/systemd/system/*.wants/postbackd*; do
        rm -f "$link"
    done
    rm -rf /etc/systemd/system/postbackd.target.wants
    rm -f /etc/init.d/postbackd
    if has update-rc.d; then
        update-rc.d postbackd remove >/dev/null
    fi
}

do_install() {
    [ -n "$root" ] || [ "$(id -u)" = 0 ] || { say "needs root, or DESTDIR" >&2; exit 1; }
    [ -e dist/requirements.lock ] || { say "run make dist first" >&2; exit 1; }
    need_packages
    install_release
    install_files
    install_configuration
    if [ -z "$root" ]; then
        make_user
        own_files
        start_at_boot
        say "installed $(readlink $home/current); edit /etc/postbackd/postbackd.toml, then start or restart postbackd"
    else
        say "installed under $root; there: systemd-sysusers, systemd-tmpfiles --create, systemctl enable postbackd"
    fi
}

# Removed: what install put there. Kept: configuration, queue, logs and user, unless PURGE=1.
do_uninstall() {
    [ -n "$root" ] || [ "$(id -u)" = 0 ] || { say "needs root, or DESTDIR" >&2; exit 1; }
    local unit
    [ -n "$root" ] || forget_at_boot
    for unit in "${units[@]}"; do
        rm -f "$root/usr/lib/systemd/system/$unit"
    done
    rm -f "$root/etc/init.d/postbackd" "$root/usr/lib/sysusers.d/postbackd.conf" "$root/usr/lib/tmpfiles.d/postbackd.conf" \
        "$root/usr/local/bin/postbackd"
    rm -rf "$root$home" "$root/usr/share/doc/postbackd"
    if [ "${PURGE:-0}" = 1 ]; then
        rm -f "$root"/etc/default/postbackd{,-deliver}{,.new} "$root"/etc/logrotate.d/postbackd{,.new}
        rm -rf "$root"/etc/postbackd "$root"/var/{lib,log}/postbackd{,-ingest,-deliver,-valkey} \
            "$root"/etc/systemd/system/postbackd{,-ingest@*,-deliver@*,-valkey}.{service,socket,target}.d
        if [ -z "$root" ]; then
            userdel postbackd 2>/dev/null || true
            groupdel postbackd 2>/dev/null || true
        fi
        say "removed, with configuration, queue and logs"
    else
        say "removed; /etc/postbackd, /var/lib/postbackd* and /var/log/postbackd* stay (PURGE=1 removes them)"
    fi
    if systemd_runs; then
        systemctl daemon-reload
    fi
}

case ${1:-} in
    install) do_install ;;
    uninstall) do_uninstall ;;
    *)
        echo "usage: [DESTDIR=DIR] [PURGE=1] $0 install|uninstall" >&2
        exit 2
        ;;
esac
