"""`interrupt.py PLAYBOOK INVENTORY [COMMAND…]`: runs a playbook and, at a task chosen at random, kills it; or runs COMMAND and lets it end as it will.

SEED in the environment repeats a choice; it is printed.
"""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

TASKS = 70  # about how many a first run has


def main() -> None:
    """Exit 0 when the interruption took place, 1 when the run had ended before."""
    playbook, inventory, command = sys.argv[1], sys.argv[2], sys.argv[3:]
    seed = int(os.environ.get("SEED", random.randrange(10**6)))
    chosen = random.Random(seed).randrange(1, TASKS)
    run = subprocess.Popen(
        [str(Path(sys.executable).with_name("ansible-playbook")), playbook, "-i", inventory],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    seen = 0
    for line in run.stdout or ():
        if line.startswith("TASK "):
            seen += 1
            if seen == chosen:
                print(f"seed {seed}, task {seen}: {line.strip()}")
                if command:
                    subprocess.run(command, check=True)
                else:
                    os.killpg(run.pid, signal.SIGKILL)
    status = run.wait()
    print(f"the run ended with {status} after {seen} tasks")
    sys.exit(seen < chosen)


main()
