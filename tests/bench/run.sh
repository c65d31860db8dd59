#!/bin/bash
# Runs the harness with vstor beside its peers and prints the table of medians: run.sh OUT.jsonl [harness arguments: systems and options]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$1
shift
export BENCH_DRIVERS="vstor:$here/vstor_driver.py:VStor"
"${PYTHON:-python3}" "$here/harness/bench.py" --out "$out" "$@"
"${PYTHON:-python3}" "$here/harness/report.py" "$out"
