#!/usr/bin/env bash
# Builds build/wheelhouse.tar: the wheel of daemons/ (with the C engine) and those of its run-time dependencies, at the
# versions of requirements.txt, and build/wheelhouse.id, a hash of what is inside. The roles deploy the one and
# compare the other, so a change of the tree is deployed and an unchanged tree is not.
# Usage: .make/wheelhouse.sh PYTHON   (the interpreter of .venv)
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
work=build/wheelhouse
rm -rf "$work.new"
mkdir -p "$work.new"
# setuptools takes what it finds there into the wheel, also modules that are gone from the tree.
rm -rf daemons/build
# Wheels already fetched are taken from the last wheelhouse, so that only vstor itself is built again.
mkdir -p "$work"
"$python" -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --find-links "$work" \
    --constraint requirements.txt --wheel-dir "$work.new" ./daemons
rm -rf "$work"
mv "$work.new" "$work"
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$work" -cf build/wheelhouse.tar.new .
"$python" .make/wheelhouse_id.py "$work" >build/wheelhouse.id.new
mv build/wheelhouse.tar.new build/wheelhouse.tar
mv build/wheelhouse.id.new build/wheelhouse.id
