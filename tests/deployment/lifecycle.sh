#!/usr/bin/env bash
# What happens to the cluster of `make up` over its life, on this machine: check mode before and after, a second run, a run from another clone,
# kill -9 of everything under a writer that fsyncs, a reboot (everything killed, /run emptied, nothing mounted), down and up.
# Destroys the cluster vstor of this machine, so it wants VSTOR_DESTROY=yes. Leaves none behind. About five minutes.
# Usage: VSTOR_DESTROY=yes tests/deployment/lifecycle.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
if [[ ${VSTOR_DESTROY:-} != yes ]]; then
    echo "this destroys the cluster vstor of this machine: set VSTOR_DESTROY=yes" >&2
    exit 2
fi
export PYTHONDONTWRITEBYTECODE=1 NO_COLOR=1 ANSIBLE_NOCOLOR=1
work=$(mktemp -d)
writer=
finish() {
    status=$?
    if [[ -n $writer ]]; then
        kill -KILL "$writer" || echo "the writer had ended"
    fi
    if ((status == 0)); then
        rm -r "$work"
    else
        echo "failed (exit code $status); logs in $work" >&2
    fi
}
trap finish EXIT
trap 'exit 143' TERM INT

step() {
    printf '%4ss  %s\n' "$SECONDS" "$*"
}

run() { # NAME COMMAND...: output to a log, shown when it fails
    local log=$work/$1
    shift
    "$@" >"$log" 2>&1 || {
        tail -n 60 "$log"
        return 1
    }
}

unchanged() { # NAME: that run changed nothing
    grep -qE 'changed=0 .*failed=0' "$work/$1" || {
        grep -B1 '^changed' "$work/$1"
        echo "$1 changed something"
        return 1
    }
}

purge() {
    local id
    if [[ -e /etc/vstor/clusters/vstor/ca.crt ]]; then
        id=$(vstorctl -c vstor discover --format json | .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)[0]["cluster_id"])')
        run purge make purge CLUSTER=vstor ID="$id"
    fi
    for left in /etc/vstor/clusters/vstor /var/lib/vstor/mds/1 /var/lib/vstor/cs/1 ~/.config/vstor/vstor.password; do
        if [[ -e $left ]]; then
            echo "purge left $left"
            return 1
        fi
    done
}

# Everything a run may write. What Ansible keeps for a moment in ~/.ansible is not the cluster's.
trees() {
    .venv/bin/python tests/deployment/tree.py /etc /opt/vstor /usr/local/bin /usr/local/share /usr/lib/systemd /var/spool "$HOME/.config" "$@"
}

same() { # BEFORE AFTER
    diff "$work/$1" "$work/$2" || {
        echo "check mode wrote these"
        return 1
    }
}

pids() { # of everything the cluster runs here, supervisord too
    vstorctl -c vstor list-services --format json | .venv/bin/python -c 'import json, sys; print(*[s["pid"] for s in json.load(sys.stdin) if s["pid"]])'
    if [[ -e /run/vstor/supervisord.pid ]]; then cat /run/vstor/supervisord.pid; fi
}

kill_everything() { # under a writer, once it has noted some files
    .venv/bin/python tests/deployment/fsync_writer.py write /mnt/vstor/life "$work/notes" >>"$work/writer" 2>&1 &
    writer=$!
    local before
    before=$(wc -l <"$work/notes")
    until (($(wc -l <"$work/notes") >= before + 100)); do
        kill -0 "$writer" || {
            cat "$work/writer"
            return 1
        }
        sleep 0.2
    done
    # shellcheck disable=SC2046
    kill -KILL $(pids)
    # The mount's server is gone: what the writer has in flight fails, and it ends.
    if wait "$writer"; then
        echo "the writer ended by itself"
    fi
    writer=
}

run wheel make wheel
purge
touch "$work/notes"

step "check mode on a machine without a cluster"
trees /run/vstor /var/lib/vstor /var/log/vstor >"$work/empty-before"
run check-empty make up ARGS="--check --diff"
trees /run/vstor /var/lib/vstor /var/log/vstor >"$work/empty-after"
same empty-before empty-after

step "make up"
run up make up
grep -q 'cluster vstor is healthy' "$work/up"
grep -q ' /mnt/vstor fuse.vstor ' /proc/mounts
step "make up again"
run up-again make up
unchanged up-again

step "plain ansible-playbook, typed in another clone of the same tree: nothing is deployed, nothing restarts"
git clone -q . "$work/clone"
# What is committed is in the clone; a tree with changes is another program.
git diff --quiet HEAD || echo "the tree has changes: the clone is another program and is deployed"
pids >"$work/pids-before"
PATH=$PWD/.venv/bin:$PATH run clone-up env -C "$work/clone" ansible-playbook site.yml -i inventory
pids >"$work/pids-after"
if git diff --quiet HEAD; then
    diff "$work/pids-before" "$work/pids-after"
else
    run up-once-more make up
fi

step "check mode with a cluster"
trees >"$work/full-before"
run check-full make up ARGS="--check --diff"
unchanged check-full
trees >"$work/full-after"
same full-before full-after

step "kill -9 of everything under a writer, make up"
kill_everything
run up-after-kill make up
.venv/bin/python tests/deployment/fsync_writer.py verify /mnt/vstor/life "$work/notes"

step "a reboot: everything killed under a writer, nothing mounted, /run/vstor gone, make up"
kill_everything
umount -l /mnt/vstor
find /run/vstor -mindepth 1 -delete
rmdir /run/vstor
step "check mode on a cluster that is down"
trees /run/vstor /var/lib/vstor >"$work/down-before"
run check-down make up ARGS="--check --diff"
trees /run/vstor /var/lib/vstor >"$work/down-after"
same down-before down-after
run up-after-reboot make up
.venv/bin/python tests/deployment/fsync_writer.py verify /mnt/vstor/life "$work/notes"
run up-after-reboot-again make up
unchanged up-after-reboot-again

step "make down, make up"
run down make down
if grep -q ' /mnt/vstor ' /proc/mounts; then
    echo "still mounted after make down"
    exit 1
fi
run down-again make down
unchanged down-again
run up-after-down make up
.venv/bin/python tests/deployment/fsync_writer.py verify /mnt/vstor/life "$work/notes"

step "purge, and check mode again on what is left"
run down make down
purge
trees /run/vstor /var/lib/vstor /var/log/vstor >"$work/purged-before"
run check-purged make up ARGS="--check --diff"
trees /run/vstor /var/lib/vstor /var/log/vstor >"$work/purged-after"
same purged-before purged-after
step "all is well"
