"""The directory of a chunk server and the file that says whose it is.

DESIGN: `cs.json` makes a directory a CS: cluster, id, tier, address, journal, and a checksum over all that. It travels with the
disk, so a disk moved to another host is the same CS. Everything else in the directory belongs to the C engine
(daemons/docs/on_disk_format.md). A directory that holds anything unknown is never touched.
"""

from __future__ import annotations

import fcntl
import hashlib
import ipaddress
import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vstor import paths, services
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError, from_os_error
from vstor.net.identity import Identity, check_cluster_name, hostname, load_identity
from vstor.net.rpc_client import call_sync
from vstor.proto import messages as m

IDENTITY_FILE = "cs.json"
JOURNAL_FILE = "journal"  # in the repository, when it is nowhere else
FORMAT = 1
IDENTITY_BYTES_MAX = 65536
TIERS = range(4)
JOURNAL_MB_DEFAULT = 256
JOURNAL_MB_STEP = 64
JOURNAL_MB_MAX = 1 << 20
CREATE_TIMEOUT_S = 30.0
ENGINE_ENTRIES = frozenset({"chunks", "journal", "lock", "scrub.json"})  # a CS without its identity file
TOLERATED_ENTRIES = frozenset({"lost+found"})


@dataclass(frozen=True)
class CsIdentity:
    """Contents of cs.json."""

    cluster: str
    cluster_id: str  # 32 hex digits
    cs_id: int
    tier: int = 0
    address: str = ""  # "ip" or "ip:port" to listen on; "": the address that reaches the MDS
    journal: str = ""  # file of the journal; "": in the repository
    journal_mb: int = JOURNAL_MB_DEFAULT

    def host_and_port(self) -> tuple[str, int]:
        """Where to listen: ("", 0) when nothing was asked for, port 0 for any."""
        return parse_listen_address(self.address) if self.address else ("", 0)


def parse_listen_address(text: str) -> tuple[str, int]:
    """(ip, port) of "IP", "IP:PORT", "[V6]:PORT"; port 0 when none is given. Raises CONFIG."""
    host, port = text.strip(), "0"
    if host.startswith("["):
        host, _, port = host[1:].partition("]")
        port = port.removeprefix(":") or "0"
    elif host.count(":") == 1:
        host, _, port = host.partition(":")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        raise VstorError(ErrorCode.CONFIG, f"bad address {text!r}: use IP or IP:PORT") from None
    if not port.isdigit() or int(port) > 65535:
        raise VstorError(ErrorCode.CONFIG, f"bad address {text!r}: the port must be between 1 and 65535")
    return str(ip), int(port)


# --- the identity file


def _checksum(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def encode_identity(identity: CsIdentity) -> bytes:
    """Bytes of cs.json."""
    fields = {"format": FORMAT, **asdict(identity)}
    return json.dumps({**fields, "checksum": _checksum(fields)}, indent=1).encode() + b"\n"


def decode_identity(data: bytes, file: Path) -> CsIdentity:
    """Raises DAMAGED or NEWER_FORMAT, naming `file` and the mend."""
    damaged = f"{file} is damaged ({{}}); restore it from a copy, or remove this CS from the cluster (rm-cs) and make a new one"
    try:
        fields = json.loads(data)
    except ValueError as exc:
        raise VstorError(ErrorCode.DAMAGED, damaged.format(f"not JSON: {exc}")) from None
    if not isinstance(fields, dict) or not isinstance(fields.get("format"), int):
        raise VstorError(ErrorCode.DAMAGED, damaged.format("no format number"))
    if fields["format"] > FORMAT:
        text = f"{file} has format {fields['format']}, this version knows {FORMAT}; install a newer vstor on this host"
        raise VstorError(ErrorCode.NEWER_FORMAT, text)
    checksum = fields.pop("checksum", "")
    if checksum != _checksum(fields):
        raise VstorError(ErrorCode.DAMAGED, damaged.format("checksum does not match"))
    fields.pop("format")
    try:
        return CsIdentity(**fields)
    except TypeError as exc:
        raise VstorError(ErrorCode.DAMAGED, damaged.format(str(exc))) from None


def read_identity(repo: Path) -> CsIdentity:
    """Identity of the CS in `repo`. Raises NOT_FOUND (no directory, or no CS in it), DAMAGED, NEWER_FORMAT, DENIED."""
    file = repo / IDENTITY_FILE
    try:
        if not repo.is_dir():
            raise VstorError(ErrorCode.NOT_FOUND, f"{repo}: no such directory; is its disk mounted?")
        with file.open("rb") as opened:
            data = opened.read(IDENTITY_BYTES_MAX)
    except FileNotFoundError:
        found = sorted(_engine_entries(repo))
        if found:
            text = f"{file} is missing beside {', '.join(found)}; restore it from a copy, or empty the directory and run make-cs"
            raise VstorError(ErrorCode.DAMAGED, text) from None
        raise VstorError(
            ErrorCode.NOT_FOUND, f"{repo} holds no chunk server; run: vstorctl make-cs -r {repo}"
        ) from None
    except OSError as exc:
        raise from_os_error(exc, f"cannot read {file}") from exc
    return decode_identity(data, file)


def load(repo: Path) -> tuple[CsIdentity, Identity]:
    """The CS's identity and this node's in its cluster, for the daemon.

    Raises: as read_identity and load_identity; WRONG_CLUSTER when the directory comes from another cluster of that name.
    """
    identity = read_identity(repo)
    node = load_identity(identity.cluster)
    require_same_cluster(identity, node, repo)
    return identity, node


def require_same_cluster(identity: CsIdentity, node: Identity, repo: Path) -> None:
    """Raises WRONG_CLUSTER."""
    if (identity.cluster, identity.cluster_id) != (node.cluster, node.cluster_id):
        theirs = f"{identity.cluster} (id {identity.cluster_id})"
        text = f"{repo} belongs to cluster {theirs}, not {node.cluster} (id {node.cluster_id}); use another directory"
        raise VstorError(ErrorCode.WRONG_CLUSTER, text)


# --- make-cs


def _engine_entries(repo: Path) -> set[str]:
    return set(os.listdir(repo)) & ENGINE_ENTRIES


def require_empty(repo: Path) -> None:
    """Nothing but lost+found and leavings of an interrupted make-cs. Raises FOREIGN_DATA, or DAMAGED for a CS without identity."""
    entries = {e for e in os.listdir(repo) if not (e.startswith(f".{IDENTITY_FILE}.") and e.endswith(".tmp"))}
    foreign = sorted(entries - TOLERATED_ENTRIES)
    if not foreign:
        return
    if set(foreign) <= ENGINE_ENTRIES:
        text = f"{repo} holds the data of a chunk server ({', '.join(foreign)}) but no {IDENTITY_FILE}; restore that file, or empty the directory"
        raise VstorError(ErrorCode.DAMAGED, text)
    shown = ", ".join(foreign[:3]) + (" …" if len(foreign) > 3 else "")
    text = (
        f"{repo} is not empty (holds {shown}); a chunk server needs a directory of its own: empty it or choose another"
    )
    raise VstorError(ErrorCode.FOREIGN_DATA, text)


def _check_options(address: str | None, tier: int, journal_mb: int | None) -> None:
    if address:
        parse_listen_address(address)
    if tier not in TIERS:
        raise VstorError(ErrorCode.CONFIG, f"tier must be between {TIERS[0]} and {TIERS[-1]}, not {tier}")
    if journal_mb is not None and not (0 < journal_mb <= JOURNAL_MB_MAX and journal_mb % JOURNAL_MB_STEP == 0):
        text = f"journal size must be a multiple of {JOURNAL_MB_STEP} MB, at most {JOURNAL_MB_MAX}, not {journal_mb}"
        raise VstorError(ErrorCode.CONFIG, text)


def _prepare_directory(repo: Path) -> None:
    try:
        repo.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise VstorError(ErrorCode.NOT_DIR, f"{repo} is not a directory") from None
    except OSError as exc:
        raise from_os_error(exc, f"cannot make {repo}") from exc


def _journal_file(journal: Path | None, identity_cs_id: int, cluster: str) -> str:
    """`journal` may be a directory (a file for this CS is made in it) or the file itself."""
    if journal is None:
        return ""
    journal = journal.absolute()
    return str(journal / f"journal-{cluster}-{identity_cs_id}" if journal.is_dir() else journal)


def create(
    cluster: str, repo: Path, address: str | None, tier: int, journal: Path | None, journal_mb: int | None
) -> int:
    """Make a chunk server in `repo` (created when missing) and register it as a service of this node: `make-cs`.

    Run again for a CS of this cluster it changes nothing but the address and tier that are given.

    Args:
        address: "IP[:PORT]" to listen on; None: the address that reaches the MDS, any port.
        journal: directory or file of the journal; None: inside `repo`. journal_mb: its size.
    Returns: the CS id. Durability: the identity file is on stable storage on return.
    Raises: CONFIG, DENIED (node not authenticated), FOREIGN_DATA, WRONG_CLUSTER, DAMAGED, NEWER_FORMAT, UNREACHABLE.
    """
    check_cluster_name(cluster)
    _check_options(address, tier, journal_mb)
    node = load_identity(cluster)
    repo = Path(os.path.abspath(repo))
    _prepare_directory(repo)
    if (repo / IDENTITY_FILE).exists():
        identity = read_identity(repo)
        require_same_cluster(identity, node, repo)
        wanted = replace(identity, tier=tier, address=address or identity.address)
    else:
        require_empty(repo)
        body = m.CsCreate(host_id=node.host_id, hostname=hostname(), tier=tier, path=str(repo))
        reply = call_sync(cluster, body, deadline_s=CREATE_TIMEOUT_S)
        if not isinstance(reply, m.CsCreated):
            raise VstorError(ErrorCode.BAD_REQUEST, "the MDS answered CsCreate with something else")
        wanted = CsIdentity(
            cluster=cluster,
            cluster_id=node.cluster_id,
            cs_id=reply.cs_id,
            tier=tier,
            address=address or "",
            journal=_journal_file(journal, reply.cs_id, cluster),
            journal_mb=journal_mb or JOURNAL_MB_DEFAULT,
        )
        identity = None
    if wanted != identity:
        write_identity(repo, wanted)
    services.register(cluster, "cs", wanted.cs_id, str(repo))
    return wanted.cs_id


def write_identity(repo: Path, identity: CsIdentity) -> None:
    """Durable on return; a crash leaves the old file or the new one."""
    try:
        paths.write_atomic(repo / IDENTITY_FILE, encode_identity(identity))
    except OSError as exc:
        raise from_os_error(exc, f"cannot write {repo / IDENTITY_FILE}") from exc


def move_journal(repo: Path, directory: Path | None) -> tuple[bool, Path]:
    """Take the journal of a stopped CS to `directory`, None: into the repository. (whether anything changed, the journal file).

    The identity file is the switch: until it is written the old journal counts, from then on the new one, whole and flushed.
    Raises: IN_USE (it runs), NOT_FOUND, NOT_DIR, EXISTS (something of that name is there), NO_SPACE, IO_ERROR.
    """
    identity = read_identity(repo)
    if directory is not None and not directory.is_dir():
        raise VstorError(ErrorCode.NOT_DIR, f"{directory} is not a directory; make it first")
    wanted = "" if directory is None else str(directory / f"journal-{identity.cluster}-{identity.cs_id}")
    old, new = (Path(name) if name else repo / JOURNAL_FILE for name in (identity.journal, wanted))
    try:
        with (repo / "lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if old == new:
                return False, new
            if not old.is_file() and not (repo / "chunks").exists():  # never started: the engine makes it in its place
                write_identity(repo, replace(identity, journal=wanted))
                return True, new
            if not old.is_file():
                text = f"the journal {old} is missing; bring its disk back, or remove this CS from the cluster (rm-cs)"
                raise VstorError(ErrorCode.NOT_FOUND, text)
            if new.exists():
                raise VstorError(ErrorCode.EXISTS, f"{new} exists already; move it away if nothing needs it")
            _copy_durably(old, new)
            write_identity(repo, replace(identity, journal=wanted))
            old.unlink()
    except BlockingIOError:
        raise VstorError(ErrorCode.IN_USE, f"the chunk server of {repo} runs; stop it first") from None
    except OSError as exc:
        raise from_os_error(exc, f"cannot move the journal to {new}") from exc
    return True, new


def _copy_durably(old: Path, new: Path) -> None:
    """The file with owner and mode, on stable storage under its name on return."""
    tmp = new.with_name(f".{new.name}.tmp")
    try:
        shutil.copyfile(old, tmp)
        status = old.stat()
        os.chown(tmp, status.st_uid, status.st_gid)
        os.chmod(tmp, status.st_mode & 0o777)
        with tmp.open("rb") as file:
            os.fsync(file.fileno())
    except OSError:
        tmp.unlink(missing_ok=True)
        raise
    os.replace(tmp, new)
    directory = os.open(new.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
