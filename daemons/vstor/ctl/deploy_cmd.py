"""deploy: runs the playbooks, with progress by task and host."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from vstor import paths
from vstor.codes_gen import ERRORS, ErrorCode
from vstor.ctl.context import Context
from vstor.ctl.playbook_progress import Progress
from vstor.ctl.spec import EXIT_PARTLY, Command, Opt
from vstor.errors import VstorError, from_os_error

COLLECTION = "vstor.storage"
RUNS_KEPT = 10
EXIT_INTERRUPTED = 130
OUTPUT_LINES_SHOWN = 20
CANCEL_POLL_S = 1
_VERB = re.compile(r"[a-z][a-z0-9_-]*")
_FQCN = re.compile(r"[a-z_]\w*\.[a-z_]\w*\.[a-z_]\w*")


def artifacts_dir(text: str | None) -> Path:
    """Where runs are recorded; below the user's own state directory by default."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(text or Path(base) / "vstor" / "deploy").expanduser().absolute()


def find_playbook(name: str, project: Path) -> str:
    """The playbook meant: a file, a verb of the project (site, drain, …), or one of the collection. Raises NOT_FOUND."""
    for candidate in (Path(name), project / name):
        if candidate.is_file():
            return str(candidate.absolute())
    if _FQCN.fullmatch(name):
        return name
    if _VERB.fullmatch(name):
        for candidate in (project / f"{name}.yml", project / "playbooks" / f"{name}.yml"):
            if candidate.is_file():
                return str(candidate.absolute())
        if not (project / "site.yml").exists():
            return f"{COLLECTION}.{name.replace('-', '_')}"  # not in the tree of vstor: the installed collection has it
    raise VstorError(
        ErrorCode.NOT_FOUND, f"{name}: no such playbook in {project} — give a file, or a verb such as site or upgrade"
    )


def find_inventories(given: list[str], project: Path) -> list[str]:
    """Absolute paths of inventories. Raises NOT_FOUND."""
    found = []
    for name in given or ["inventory"]:
        place = Path(name) if given else project / name
        if not place.exists():
            raise VstorError(ErrorCode.NOT_FOUND, f"{place}: no such inventory — give one with -i")
        found.append(str(place.absolute()))
    return found


def command_line(ctx: Context) -> list[str]:
    """Options handed on to ansible-playbook."""
    args = ctx.args
    words = [flag for flag, wanted in (("--check", args.check), ("--diff", args.diff)) if wanted]
    for flag, values in (
        ("--limit", [args.limit] if args.limit else []),
        ("--tags", args.tags or []),
        ("--skip-tags", args.skip_tags or []),
        ("--forks", [str(args.forks)] if args.forks else []),
        ("--vault-password-file", [str(Path(f).expanduser().absolute()) for f in args.vault_password_file or []]),
        ("--extra-vars", [_extra_vars(text) for text in args.extra_vars or []]),
    ):
        words += [word for value in values for word in (flag, value)]
    return words


def _extra_vars(text: str) -> str:
    # Ansible runs in the project directory: a relative file is meant from here.
    return f"@{Path(text[1:]).expanduser().absolute()}" if text.startswith("@") else text


def _load_runner() -> Any:
    try:
        import ansible_runner
    except ImportError as exc:
        raise VstorError(
            ErrorCode.NOT_SUPPORTED, "deploy needs ansible-runner and ansible-core — pip install 'vstor[deploy]'"
        ) from exc
    return ansible_runner


def _environment() -> dict[str, str]:
    """Ansible of this interpreter's environment comes first. Raises NOT_SUPPORTED without one."""
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"
    if shutil.which("ansible-playbook", path=path) is None:
        raise VstorError(ErrorCode.NOT_SUPPORTED, "ansible-playbook is not on PATH — pip install 'vstor[deploy]'")
    return {"PATH": path}


def _forget_environment(run_dir: Path) -> None:
    """ansible-runner records the command with all its environment and variables, where secrets may be; keep what was run only."""
    file = run_dir / "command"
    record = json.loads(file.read_bytes())
    words = record["command"]
    hidden = ["…" if i and words[i - 1] == "--extra-vars" and not w.startswith("@") else w for i, w in enumerate(words)]
    paths.write_atomic(file, json.dumps({"command": hidden, "cwd": record["cwd"]}).encode(), 0o600)


def deploy(ctx: Context) -> int:
    """Run a playbook; the exit status tells done, refused, in part, or interrupted."""
    args = ctx.args
    runner = _load_runner()
    project = Path(args.project).expanduser().absolute()
    playbook = find_playbook(args.playbook, project)
    inventories = find_inventories(args.inventory or [], project)
    base = artifacts_dir(args.artifacts)
    ident = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()) + f"-{os.getpid()}"
    run_dir = base / "artifacts" / ident
    try:
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        base.chmod(0o700)
    except OSError as exc:
        raise from_os_error(exc, f"cannot use {base}") from exc
    progress = Progress()

    def on_event(event: dict[str, Any]) -> bool:
        lines = progress.feed(event)
        if args.verbose or args.diff:
            lines = [event["stdout"]] if event.get("stdout") else []
        for line in lines:
            ctx.say(line)
        return event.get("event") in ("runner_on_failed", "runner_on_unreachable", "playbook_on_stats")

    def on_status(status: dict[str, Any], runner_config: Any) -> None:
        if status.get("status") == "running":
            _forget_environment(run_dir)

    # ansible-runner also prints what it thinks of itself; standard output is ours.
    with contextlib.redirect_stdout(ctx.err):
        done = runner.run(
            private_data_dir=str(base),
            ident=ident,
            rotate_artifacts=RUNS_KEPT,
            project_dir=str(project),
            playbook=playbook,
            inventory=inventories,
            cmdline=shlex.join(command_line(ctx)),
            envvars=_environment(),
            event_handler=on_event,
            status_handler=on_status,
            quiet=True,
            suppress_env_files=True,
            settings={"pexpect_timeout": CANCEL_POLL_S},
        )
    return _finish(ctx, progress, done, run_dir)


def _finish(ctx: Context, progress: Progress, done: Any, run_dir: Path) -> int:
    """The outcome, said and as exit status."""
    if done.status == "canceled":
        outcome, status = "interrupted", EXIT_INTERRUPTED
    elif done.rc == 0:
        outcome, status = "done", 0
    elif not progress.failed:
        outcome, status = "refused", ERRORS[ErrorCode.CONFIG].exit_code
        tail = (run_dir / "stdout").read_text(errors="replace").splitlines()[-OUTPUT_LINES_SHOWN:]
        ctx.warn("Ansible did not run the playbook:\n" + "\n".join(tail))
    elif all(item["result"] == "unreachable" for item in progress.failed):
        outcome, status = "unreachable", ERRORS[ErrorCode.UNREACHABLE].exit_code
    else:
        outcome, status = "failed", EXIT_PARTLY
    for item in progress.failed:
        ctx.warn(f"{item['host']}: {item['task']}: {item['result']}: {item['reason']}")
    value = {
        "outcome": outcome,
        "hosts": {host: dict(counts) for host, counts in sorted(progress.hosts.items())},
        "failed": progress.failed,
        "record": str(run_dir),
    }
    ctx.emit(value, "\n".join([*progress.summary(), f"{outcome}; all output: {run_dir}/stdout"]))
    return status


COMMANDS = (
    Command(
        name="deploy",
        summary="run the playbooks of vstor",
        description=(
            "Runs a playbook with ansible-runner and prints a line for each task: how many hosts are as wanted, which were changed, and why one failed. "
            "PLAYBOOK is a file or a verb: site (install, add and configure), preflight, upgrade, restart, drain, and what else playbooks/ has; outside of "
            "the tree of vstor those of the installed collection vstor.storage are meant. Exit status 0: done; 15: a task failed on some host; 10: hosts "
            "could not be reached; 2: Ansible refused the playbook or the inventory; 130: interrupted. Each run is recorded in a directory of the user "
            "alone, without environment and variables; secrets belong into a vault file, as values of --extra-vars are seen by others in the list of processes."
        ),
        run=deploy,
        needs_cluster=False,
        options=(
            Opt("playbook", metavar="PLAYBOOK", nargs="?", default="site", help="file or verb (default: site)"),
            Opt(
                "-i",
                "--inventory",
                metavar="PATH",
                action="append",
                help="inventory file or directory; may be given several times (default: inventory in the project)",
            ),
            Opt(
                "--project",
                metavar="DIR",
                default=".",
                help="directory with ansible.cfg and playbooks (default: this one)",
            ),
            Opt("--check", action="store_true", help="change nothing, tell what would be changed"),
            Opt("--diff", action="store_true", help="show the differences, with Ansible's own output"),
            Opt("--limit", metavar="PATTERN", help="only these hosts and groups"),
            Opt("--tags", metavar="TAGS", action="append", help="only tasks with these tags"),
            Opt("--skip-tags", metavar="TAGS", action="append", help="all but tasks with these tags"),
            Opt(
                "-e",
                "--extra-vars",
                metavar="NAME=VALUE|@FILE",
                action="append",
                help="variables; may be given several times",
            ),
            Opt("--vault-password-file", metavar="FILE", action="append", help="password of the vault"),
            Opt("--forks", metavar="N", type=int, help="hosts at a time (default: of ansible.cfg)"),
            Opt(
                "--artifacts",
                metavar="DIR",
                help=f"where runs are recorded, the last {RUNS_KEPT} (default: ~/.local/state/vstor/deploy)",
            ),
            Opt("-v", "--verbose", action="store_true", help="Ansible's own output instead of a line for each task"),
        ),
        examples=(
            "vstorctl deploy preflight -i production",
            "vstorctl deploy -i production --check --diff",
            "vstorctl deploy site -i production --limit node7 --tags vstor_cs_install",
        ),
    ),
)
