#!/usr/bin/env bash
# Kills `make up` at a random moment, runs it again, and expects a healthy cluster and then a run that changes nothing; ROUNDS times.
# Destroys the cluster vstor of this machine, so it wants VSTOR_DESTROY=yes. A failure prints the seed: SEED=… repeats it.
# Usage: VSTOR_DESTROY=yes [SEED=N] tests/deployment/interrupted.sh [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-5}
SEED=${SEED:-$((RANDOM * 32768 + RANDOM))}
RANDOM=$((SEED % 32768))
if [[ ${VSTOR_DESTROY:-} != yes ]]; then
    echo "this destroys the cluster vstor of this machine: set VSTOR_DESTROY=yes" >&2
    exit 2
fi
work=$(mktemp -d)
trap 'status=$?; ((status == 0)) || echo "failed; SEED=$SEED, logs in $work"' EXIT

purge() {
    if [[ -e /etc/vstor/clusters/vstor/ca.crt ]]; then
        id=$(vstorctl -c vstor discover --format json | .venv/bin/python -c 'import json, sys; print(json.load(sys.stdin)[0]["cluster_id"])')
        make purge CLUSTER=vstor ID="$id" >"$work/purge" 2>&1
    fi
}

make wheel >"$work/wheel" 2>&1
# How long a whole run takes here; the kill falls within it.
purge
start=$SECONDS
make up >"$work/first" 2>&1
whole_s=$((SECONDS - start))
for ((round = 1; round <= rounds; round++)); do
    purge
    setsid make up >"$work/killed-$round" 2>&1 &
    leader=$!
    delay_s=$((RANDOM % (whole_s + 1)))
    sleep "$delay_s"
    if kill -KILL -- "-$leader"; then
        echo "round $round: killed after $delay_s of $whole_s s in: $(grep '^TASK' "$work/killed-$round" | tail -n 1)"
    fi
    # Killed, so its exit status says nothing.
    if wait "$leader"; then
        echo "round $round: it had ended"
    fi
    make up >"$work/again-$round" 2>&1
    grep -q 'cluster vstor is healthy' "$work/again-$round"
    make up >"$work/third-$round" 2>&1
    grep -q 'changed=0 .*failed=0' "$work/third-$round"
done
purge
echo "$rounds interrupted runs converged, SEED=$SEED"
