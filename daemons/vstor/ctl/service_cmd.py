"""service, list-services, mount, umount."""

from __future__ import annotations

import os
from pathlib import Path

from vstor import paths
from vstor import services as registry
from vstor.codes_gen import ERRORS, ErrorCode
from vstor.ctl import service_files as files
from vstor.ctl import services_mgr as mgr
from vstor.ctl.clusterpath import mounts
from vstor.ctl.context import Context
from vstor.ctl.initd import install_scripts
from vstor.ctl.output import table
from vstor.ctl.ownership import daemon_user, make_daemon_dir
from vstor.ctl.programs import program
from vstor.ctl.service_state import RUNNING, ServiceState
from vstor.ctl.spec import Command, Opt
from vstor.errors import VstorError
from vstor.services import Service

ACTIONS = ("start", "stop", "restart", "status", "enable", "disable", "forget", "install", "exec")
NOT_RUNNING_EXIT = 3  # of a status command, LSB init script actions


def _render(states: list[ServiceState]) -> str:
    rows = [
        (
            s.service.kind,
            s.service.cluster,
            s.service.id,
            s.state,
            s.pid or "-",
            "yes" if s.enabled else "no",
            s.service.path,
        )
        for s in states
    ]
    return table(("KIND", "CLUSTER", "ID", "STATE", "PID", "BOOT", "PATH"), rows, left=(0, 1, 2, 3, 5, 6), gap="  ")


def list_services(ctx: Context) -> int:
    """Print what is made on this node and how it is."""
    manager = mgr.choose_manager()
    states = mgr.states(manager, registry.list_services(ctx.cluster_or_none))
    ctx.emit([s.to_json() for s in states], _render(states) if states else "no service on this node")
    return 0


def service(ctx: Context) -> int:
    """Do the action for what the words mean."""
    action, words = ctx.args.action, ctx.args.what or ["all"]
    if action == "exec":  # what units run, as the user they name
        return _exec(words)
    if os.geteuid() != 0:
        raise VstorError(ErrorCode.NOT_ROOT, f"service {action} {ERRORS[ErrorCode.NOT_ROOT].text}")
    if action == "install":
        return _install(ctx)
    manager = mgr.choose_manager()
    known = registry.list_services(ctx.cluster_or_none)
    chosen = _choose(known, words)
    if ctx.args.enabled:
        chosen = [s for s in chosen if manager.enabled(s)]
    if not chosen and action in ("start", "restart", "enable") and not ctx.args.enabled:
        raise VstorError(
            ErrorCode.NOT_FOUND,
            f"no {' '.join(words)} service on this node — make one first: vstorctl make-mds, make-cs or mount",
        )
    if action == "status":
        return _status(ctx, manager, chosen)
    if action in ("enable", "disable"):
        return _enable(ctx, manager, chosen, action == "enable")
    if action == "forget":
        return _forget(ctx, manager, chosen)
    return _run(ctx, manager, chosen, action)


def _choose(known: list[Service], words: list[str]) -> list[Service]:
    names = {s.name for word in words for s in mgr.select(known, word)}
    return [s for s in known if s.name in names]


def _status(ctx: Context, manager: mgr.Manager, chosen: list[Service]) -> int:
    states = mgr.states(manager, chosen)
    ctx.emit([s.to_json() for s in states], _render(states) if states else "no service on this node")
    return 0 if states and all(s.state == RUNNING for s in states) else NOT_RUNNING_EXIT


def _enable(ctx: Context, manager: mgr.Manager, chosen: list[Service], wanted: bool) -> int:
    changed = []
    if wanted and chosen:
        manager.prepare(chosen)
    for item in chosen:
        if manager.enabled(item) != wanted:
            (manager.enable if wanted else manager.disable)(item)
            changed.append(item.name)
        ctx.say(f"{item.name}: {'starts' if wanted else 'does not start'} at boot")
    manager.finish()
    if ctx.json_wanted:
        ctx.emit({"changed": changed}, "")
    return 0


def _run(ctx: Context, manager: mgr.Manager, chosen: list[Service], action: str) -> int:
    before = {s.service.name: s.state for s in mgr.states(manager, chosen)}
    deadline_s = float(ctx.args.deadline)
    if action == "start":
        failures = mgr.start(manager, chosen, deadline_s, ctx.say)
    elif action == "stop":
        failures = mgr.stop(manager, chosen, ctx.say)
    else:
        failures = mgr.restart(manager, chosen, deadline_s, ctx.say)
    if not chosen:
        ctx.say("nothing to do: no such service on this node")
    if ctx.json_wanted:
        after = mgr.states(manager, chosen)
        changed = [s.service.name for s in after if action == "restart" or before[s.service.name] != s.state]
        ctx.emit(
            {"changed": changed, "services": [s.to_json() for s in after], "errors": [f.message for f in failures]}, ""
        )
    for failure in failures[:-1]:
        ctx.warn(failure.message)
    if failures:
        raise VstorError(failures[-1].code, failures[-1].message)
    return 0


def _forget(ctx: Context, manager: mgr.Manager, chosen: list[Service]) -> int:
    """Stop, and take out of the registry of this node. The repository stays as it is."""
    if not ctx.args.what:
        raise VstorError(ErrorCode.USAGE, "forget what? — name the services, as list-services shows them")
    failures = mgr.stop(manager, chosen, ctx.say)
    if failures:
        raise failures[0]
    for item in chosen:
        manager.forget(item)
        registry.unregister(item.cluster, item.kind, item.id)
        ctx.say(f"{item.name}: forgotten, its data stay in {item.path}")
    if ctx.json_wanted:
        ctx.emit({"changed": [item.name for item in chosen]}, "")
    return 0


def _exec(words: list[str]) -> int:
    """Become the daemon of a service: what units run. The instance is CLUSTER.ID."""
    if len(words) != 2 or words[0] not in registry.KINDS or "." not in words[1]:
        raise VstorError(
            ErrorCode.USAGE,
            "service exec needs a kind and CLUSTER.ID — for example: vstorctl service exec cs test_cluster.1025",
        )
    kind, (cluster, _, ident) = words[0], words[1].partition(".")
    found = next((s for s in registry.list_services(cluster) if s.kind == kind and s.id == ident), None)
    if found is None:
        raise VstorError(
            ErrorCode.NOT_FOUND,
            f"no service {kind} {ident} of cluster {cluster!r} on this node — see vstorctl list-services",
        )
    if os.geteuid() == 0:
        make_daemon_dir(paths.run_dir())
        make_daemon_dir(paths.log_dir())
    if kind == "mount":
        mgr.free_dead_mount(found.path)
    user = daemon_user()
    argv = program(kind) + files.daemon_arguments(
        found, paths.log_dir() / f"{files.program_name(found)}.log", user.pw_name if user else None
    )
    os.execvp(argv[0], argv)


def _install(ctx: Context) -> int:
    """Init scripts, so that `service vstor-mdsd start` does what it says."""
    written = install_scripts(Path(ctx.args.root))
    ctx.emit({"changed": [str(p) for p in written]}, "\n".join(f"{p}: written" for p in written) or "nothing to change")
    return 0


# --- clients --------------------------------------------------------------------------------------------------


def _mount_options(ctx: Context) -> list[str]:
    args = ctx.args
    pairs = (
        ("-C", args.cache),
        ("-R", args.cache_mb),
        ("-u", args.user),
        ("-g", args.group),
        ("-m", args.mode),
        ("-o", args.options),
    )
    return [word for flag, value in pairs if value is not None for word in (flag, str(value))]


def mount(ctx: Context) -> int:
    """Register a mount, start it and have it started at boot."""
    cluster, point = ctx.cluster, os.path.realpath(ctx.args.mountpoint)
    ident = files.mount_id(files.check_plain(point))
    options = _mount_options(ctx)
    manager = mgr.choose_manager()
    known = next((s for s in registry.list_services(cluster) if s.kind == "mount" and s.id == ident), None)
    item = registry.register(cluster, "mount", ident, point, **({"options": options} if options else {}))
    changed = known != item
    if not ctx.args.no_boot and not manager.enabled(item):
        manager.prepare([item])
        manager.enable(item)
        changed = True
    failures: list[VstorError] = []
    if not ctx.args.no_start:
        was_running = mgr.state_of(manager, item).state == RUNNING
        if was_running and known is not None and known != item:
            failures = mgr.restart(manager, [item], float(ctx.args.deadline), ctx.say)
        else:
            failures = mgr.start(manager, [item], float(ctx.args.deadline), ctx.say)
        changed = changed or not was_running
    if failures:
        raise failures[0]
    ctx.emit({"cluster": cluster, "mountpoint": point, "changed": changed}, "")
    return 0


def umount(ctx: Context) -> int:
    """Stop a mount and forget it."""
    point = os.path.realpath(ctx.args.mountpoint)
    manager = mgr.choose_manager()
    found = [s for s in registry.list_services(ctx.cluster_or_none) if s.kind == "mount" and s.path == point]
    if not found:
        here = any(m.mountpoint == point for m in mounts())
        error = mgr.unmount(point) if here else None
        if error is not None:
            raise error
        ctx.emit({"mountpoint": point, "changed": here}, f"{point}: {'unmounted' if here else 'not mounted'}")
        return 0
    failures = mgr.stop(manager, found, ctx.say)
    if failures:
        raise failures[0]
    for item in found:
        if not ctx.args.keep:
            manager.forget(item)
            registry.unregister(item.cluster, item.kind, item.id)
    ctx.emit({"mountpoint": point, "changed": True}, "")
    return 0


DEADLINE = Opt(
    "--deadline",
    metavar="SECONDS",
    type=float,
    default=mgr.START_DEADLINE_S,
    help="how long to wait until ready (default: 60)",
)

COMMANDS = (
    Command(
        name="list-services",
        summary="list the servers and mounts made on this node",
        description="Prints kind, id, state, pid, start at boot and directory of each metadata server, chunk server and mount on this node.",
        run=list_services,
        needs_cluster=False,
        examples=("vstorctl list-services", "vstorctl -c test_cluster list-services --format json"),
    ),
    Command(
        name="service",
        summary="start, stop and look at the servers and mounts of this node",
        description=(
            "Acts on metadata servers (mds, with the etcd member of each), chunk servers (cs), mounts (mount) or all of this node, "
            "or on one by its id or name; "
            "with -c only on those of one cluster. start waits until each is ready and says what a daemon that failed said. "
            "Starting what runs and stopping what does not is no error. stop goes from clients to etcd and refuses while a mount is in use. "
            "systemd does the work where it is PID 1, an own supervisord elsewhere. enable and disable decide about the next boot. "
            "forget stops a service that is removed from the cluster and takes it out of the list of this node; its data stay. "
            "install writes the init scripts vstor-mdsd, vstor-csd and vstor-client. "
            "exec KIND CLUSTER.ID runs the daemon in the place of vstorctl; units use it. "
            f"status ends with {NOT_RUNNING_EXIT} when something does not run."
        ),
        run=service,
        options=(
            Opt(
                "action",
                choices=ACTIONS,
                metavar="ACTION",
                help="start, stop, restart, status, enable, disable, forget, install or exec",
            ),
            Opt(
                "what",
                nargs="*",
                metavar="WHAT",
                help="mds, cs, mount, etcd, all, or ids as list-services shows them (default: all)",
            ),
            Opt("--enabled", action="store_true", help="only those that start at boot"),
            DEADLINE,
            Opt("--root", metavar="DIR", default="/", help="install: root of the file tree (default: /)"),
        ),
        needs_cluster=False,
        examples=(
            "vstorctl service start mds",
            "vstorctl service enable mds",
            "vstorctl -c test_cluster service restart 1025",
            "vstorctl service status",
        ),
    ),
    Command(
        name="mount",
        summary="mount the cluster now and at boot",
        description=(
            "Registers a mount as a service of this node, starts it, and has it started at boot. "
            "Without a service: vstor-mount(8), or a line in /etc/fstab."
        ),
        run=mount,
        options=(
            Opt("mountpoint", metavar="DIR", help="where; made when it is not there"),
            Opt("-C", "--cache", metavar="FILE", help="file on an SSD for the read cache"),
            Opt("-R", "--cache-mb", metavar="MB", type=int, help="size of the read cache in megabytes"),
            Opt("-u", "--user", metavar="USER", help="owner of the root directory's view"),
            Opt("-g", "--group", metavar="GROUP", help="group of the same"),
            Opt("-m", "--mode", metavar="MODE", help="its mode, octal"),
            Opt("-o", "--options", metavar="OPT,…", help="mount options, as for mount(8)"),
            Opt("--no-start", action="store_true", help="do not mount now"),
            Opt("--no-boot", action="store_true", help="do not mount at boot"),
            DEADLINE,
        ),
        needs_root=True,
        examples=("vstorctl -c test_cluster mount /pcs",),
    ),
    Command(
        name="umount",
        summary="unmount the cluster, now and for good",
        description="Stops a mount made with vstorctl mount and forgets it. Refused while it is in use.",
        run=umount,
        options=(
            Opt("mountpoint", metavar="DIR", help="where it is mounted"),
            Opt(
                "--keep",
                action="store_true",
                help="keep the registration: it is mounted again at the next boot or service start",
            ),
        ),
        needs_cluster=False,
        needs_root=True,
        examples=("vstorctl umount /pcs",),
    ),
)
