"""POSIX conformance: what system calls do on a mount is what they do on the local file system of the machine.

VSTOR_POSIX_EVERY=1 (make posix) runs all cases, minutes; by default one of 23.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.cluster import Cluster
from tests.helpers.posixcases import all_cases

EVERY = int(os.environ.get("VSTOR_POSIX_EVERY", "23"))
ROOT = Path(__file__).resolve().parents[2]


def run(directory: Path) -> dict[str, list[list[object]]]:
    directory.mkdir()
    argv = [sys.executable, "-m", "tests.helpers.posixrun", str(directory), str(EVERY)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


def test_as_the_local_file_system(mnt: Path, tmp_path: Path) -> None:
    local, ours = run(tmp_path / "local"), run(mnt / "ours")
    assert len(local) >= len(all_cases()) // EVERY
    assert local.keys() == ours.keys()
    wrong = []
    for name, steps in all_cases():
        for number, step in enumerate(steps):
            if name in local and local[name][number] != ours[name][number]:
                wrong.append(f"{name}: {str(step)[:200]}\n  local {local[name][number]}\n  mount {ours[name][number]}")
                break
    assert not wrong, f"{len(wrong)} of {len(local)} cases\n" + "\n".join(wrong[:20])


@pytest.mark.parametrize("seed", [1, 2])
def test_random_changes_of_names(shared_cluster: Cluster, mnt: Path, tmp_path: Path, seed: int) -> None:
    """Two processes, through both mounts; each change is compared with what the local file system does."""
    mounts = [mnt, shared_cluster.mounts["b"] / mnt.relative_to(shared_cluster.mounts["a"])]
    argv = [sys.executable, "-m", "tests.exercise.names", str(seed), "120", "2", str(tmp_path), *map(str, mounts)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("seed", range(int(os.environ.get("VSTOR_FSX_SEEDS", "4"))))
def test_random_operations_through_both_mounts(shared_cluster: Cluster, mnt: Path, seed: int) -> None:
    """Even seeds through mount a only, odd ones through a and b in turn."""
    path = mnt / "f"
    paths = (
        [path] if seed % 2 == 0 else [path, shared_cluster.mounts["b"] / path.relative_to(shared_cluster.mounts["a"])]
    )
    argv = [sys.executable, "-m", "tests.exercise.fsx", str(seed), "700", *map(str, paths)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
