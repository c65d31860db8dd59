#!/usr/bin/env bash
# Installs the Debian packages of the given groups of packages-debian.txt that are missing.
# Usage: .make/setup.sh GROUP...     (groups: up, dev, exercise)
# Needs root only when something is missing. Nothing that it installs is started: etcd's and supervisor's
# packages would start services of their own, which vstor neither needs nor wants.
set -euo pipefail
cd "$(dirname "$0")/.."

missing=()
while read -r name group _reason; do
    [[ -z $name || $name == \#* ]] && continue
    [[ " $* " == *" $group "* ]] || continue
    status=$(dpkg-query -W -f '${db:Status-Status}' "$name" 2>/dev/null || echo none)
    [[ $status == installed ]] || missing+=("$name")
done <packages-debian.txt

# Services are run by supervisord where PID 1 is not systemd.
if [[ " $* " == *" up "* && ! -d /run/systemd/system ]]; then
    status=$(dpkg-query -W -f '${db:Status-Status}' supervisor 2>/dev/null || echo none)
    [[ $status == installed ]] || missing+=(supervisor)
fi

if ((${#missing[@]} == 0)); then
    exit 0
fi
if ((EUID != 0)); then
    echo "setup: these packages are missing and only root can install them: ${missing[*]}" >&2
    echo "setup: run 'sudo make setup' once, or install them yourself" >&2
    exit 1
fi

echo "setup: installing ${missing[*]}"
# A fresh etcd-server would run a member of its own on port 2379 from the next boot on. It is masked only when
# nothing on this machine is of an etcd that somebody set up.
if [[ " ${missing[*]} " == *" etcd-server "* && -d /run/systemd/system ]] &&
    [[ ! -e /etc/default/etcd && ! -e /etc/systemd/system/etcd.service && ! -d /var/lib/etcd ]]; then
    ln -s /dev/null /etc/systemd/system/etcd.service
fi
if [[ ! -e /usr/sbin/policy-rc.d ]]; then
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 0755 /usr/sbin/policy-rc.d
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends "${missing[@]}"
