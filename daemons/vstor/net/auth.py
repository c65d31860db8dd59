"""The password proof of auth-node: scrypt verifier, SPAKE2, confirmations bound to the TLS certificate.

DESIGN: both sides feed w = scrypt(password, salt) to SPAKE2 and get the same key K only if w is the same; who watches or sits in the
middle learns nothing but whether one guess was right. The server's confirmation covers the certificate it shows in TLS, the
client's covers the certificate it saw and its CSR, so a man in the middle with a certificate of his own is found out by either.
Each exchange lets the peer test one password, so exchanges are what is limited.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from spake2 import SPAKE2_A, SPAKE2_B, SPAKEError

from vstor import paths
from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError, from_os_error
from vstor.net import discovery, identity, pki
from vstor.net.race import Race
from vstor.net.rpc_connection import RpcConnection, connect, hello
from vstor.net.rpc_server import Connection
from vstor.proto import messages as m

log = logging.getLogger(__name__)
_Reply = TypeVar("_Reply")

SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 15, 8, 1
SCRYPT_N_MAX, SCRYPT_R_MAX, SCRYPT_P_MAX = (
    1 << 18,
    16,
    4,
)  # of a server we do not trust yet
KEY_BYTES = 32
SALT_BYTES = 16
PASSWORD_BYTES_MAX = 1024
ATTEMPTS_PER_PEER = 20
ATTEMPTS_TOTAL = 200
ATTEMPTS_WINDOW_S = 60.0
PEERS_MAX = 4096
CONNECT_S_MAX = 5.0
STEP_S_MAX = 15.0
ID_CLIENT, ID_SERVER = b"vstor-node", b"vstor-mds"


@dataclass(frozen=True, slots=True)
class Verifier:
    """What an MDS keeps instead of the password. It lets its holder pose as a node that knows the password: mode 0600."""

    salt: bytes
    n: int
    r: int
    p: int
    w: bytes

    def to_json(self) -> bytes:
        return json.dumps(
            {
                "salt": self.salt.hex(),
                "n": self.n,
                "r": self.r,
                "p": self.p,
                "w": self.w.hex(),
            }
        ).encode()

    @classmethod
    def from_json(cls, data: bytes | str) -> Verifier:
        """Raises ValueError, KeyError or TypeError for spoiled data."""
        item = json.loads(data)
        return cls(
            bytes.fromhex(item["salt"]),
            int(item["n"]),
            int(item["r"]),
            int(item["p"]),
            bytes.fromhex(item["w"]),
        )


def _scrypt(password: bytes, salt: bytes, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(
        password,
        salt=salt,
        n=n,
        r=r,
        p=p,
        maxmem=256 * n * r + (1 << 20),
        dklen=KEY_BYTES,
    )


def check_password(password: bytes) -> bytes:
    """The password of a new cluster. Raises CONFIG when it is empty or too long."""
    if not password:
        raise VstorError(ErrorCode.CONFIG, "the password must not be empty")
    if len(password) > PASSWORD_BYTES_MAX:
        raise VstorError(ErrorCode.CONFIG, f"the password is longer than {PASSWORD_BYTES_MAX} bytes")
    return password


def make_verifier(password: bytes) -> Verifier:
    """With a fresh salt; takes about 0.1 s."""
    salt = secrets.token_bytes(SALT_BYTES)
    w = _scrypt(check_password(password), salt, SCRYPT_N, SCRYPT_R, SCRYPT_P)
    return Verifier(salt, SCRYPT_N, SCRYPT_R, SCRYPT_P, w)


def _mac(key: bytes, *parts: bytes) -> bytes:
    return hmac.digest(key, b"".join(parts), "sha256")


class AttemptLimit:
    """At most ATTEMPTS_PER_PEER exchanges of one address and ATTEMPTS_TOTAL in all within ATTEMPTS_WINDOW_S, successes aside."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._start_s = clock()
        self._total = 0
        self._peers: OrderedDict[str, int] = OrderedDict()

    def attempt(self, peer: str) -> None:
        """Count one. Raises LIMIT."""
        now = self._clock()
        if now - self._start_s >= ATTEMPTS_WINDOW_S:
            self._start_s, self._total = now, 0
            self._peers.clear()
        used = self._peers.get(peer, 0)
        if used >= ATTEMPTS_PER_PEER or self._total >= ATTEMPTS_TOTAL or len(self._peers) >= PEERS_MAX:
            log.warning("password attempts limited peer=%s", peer)
            raise VstorError(
                ErrorCode.LIMIT,
                f"too many password attempts; try again in {ATTEMPTS_WINDOW_S:g} s",
            )
        self._peers[peer] = used + 1
        self._total += 1

    def succeeded(self, peer: str) -> None:
        """Give one back."""
        if self._peers.get(peer, 0) > 0:
            self._peers[peer] -= 1
            self._total -= 1


class Authenticator:
    """The server's side, one for an MDS. Per connection it keeps the key of one exchange, used once."""

    def __init__(
        self,
        verifier: Verifier,
        ca_pem: bytes,
        ca_key_pem: bytes,
        cluster_id: str,
        server_cert_sha256: bytes,
        limit: AttemptLimit,
    ) -> None:
        self._verifier = verifier
        self._ca_pem = ca_pem
        self._ca_key_pem = ca_key_pem
        self._cluster_id = cluster_id
        self._cert_hash = server_cert_sha256
        self._limit = limit

    def answer(self, conn: Connection, body: m.RequestBody, mds_addresses: list[str]) -> m.ReplyBody:
        """Reply to one of the three Auth requests. A key serves one AuthFinish only. Raises as `exchange` and `finish`."""
        peer_ip = conn.peer.rpartition(":")[0]
        if isinstance(body, m.AuthStart):
            return self.start()
        if isinstance(body, m.AuthExchange):
            challenge, conn.auth_key = self.exchange(peer_ip, body.message)
            return challenge
        assert isinstance(body, m.AuthFinish | m.AuthChange)
        key, conn.auth_key = conn.auth_key, None
        if key is None:
            raise VstorError(ErrorCode.BAD_REQUEST, "AuthFinish without AuthExchange")
        if isinstance(body, m.AuthChange):
            self.check_change(peer_ip, key, body)
            return m.Ok()
        return self.finish(peer_ip, key, body, mds_addresses)

    def start(self) -> m.AuthParams:
        """The parameters of the verifier."""
        v = self._verifier
        return m.AuthParams(v.salt, v.n, v.r, v.p)

    def exchange(self, peer_ip: str, message: bytes) -> tuple[m.AuthChallenge, bytes]:
        """(reply, key to keep for `finish`). Raises LIMIT, BAD_REQUEST."""
        self._limit.attempt(peer_ip)
        side = SPAKE2_B(self._verifier.w, idA=ID_CLIENT, idB=ID_SERVER)
        own = side.start()
        try:
            key = side.finish(message)
        except (SPAKEError, ValueError, AssertionError) as exc:
            raise VstorError(ErrorCode.BAD_REQUEST, "malformed password proof") from exc
        return m.AuthChallenge(own, _mac(key, b"server", self._cert_hash)), key

    def finish(self, peer_ip: str, key: bytes, request: m.AuthFinish, mds_addresses: list[str]) -> m.AuthCertificate:
        """The node's certificate. Raises WRONG_PASSWORD, BAD_REQUEST."""
        if not hmac.compare_digest(request.confirm, _mac(key, b"client", self._cert_hash, request.csr_pem)):
            log.warning("authentication refused peer=%s", peer_ip)
            raise VstorError(ErrorCode.WRONG_PASSWORD)
        common = f"node-{secrets.token_hex(8)}"
        cert = pki.issue(
            self._ca_pem,
            self._ca_key_pem,
            request.csr_pem,
            common=common,
            role=pki.ROLE_NODE,
        )
        self._limit.succeeded(peer_ip)
        log.info("node authenticated peer=%s certificate=%s", peer_ip, common)
        tag = _mac(key, b"cert", self._ca_pem, cert)
        return m.AuthCertificate(cert, self._ca_pem, self._cluster_id, mds_addresses, tag)

    def check_change(self, peer_ip: str, key: bytes, request: m.AuthChange) -> None:
        """Raises WRONG_PASSWORD, BAD_REQUEST: who asks for a new password must have proven the old one, and the verifier must be sound."""
        if not hmac.compare_digest(request.confirm, _mac(key, b"change", self._cert_hash, request.verifier)):
            log.warning("change of the password refused peer=%s", peer_ip)
            raise VstorError(ErrorCode.WRONG_PASSWORD)
        try:
            new = Verifier.from_json(request.verifier)
        except (ValueError, KeyError, TypeError) as exc:
            raise VstorError(ErrorCode.BAD_REQUEST, "malformed verifier") from exc
        if (new.n, new.r, new.p, len(new.w)) != (SCRYPT_N, SCRYPT_R, SCRYPT_P, KEY_BYTES) or len(new.salt) < SALT_BYTES:
            raise VstorError(
                ErrorCode.BAD_REQUEST, "the verifier is weaker than it must be; use the same version everywhere"
            )
        self._limit.succeeded(peer_ip)


async def prove(
    conn: RpcConnection,
    cluster: str,
    password: bytes,
    csr_pem: bytes,
    known_ca_pem: bytes | None,
) -> m.AuthCertificate:
    """The client's side over an unverified connection.

    Raises: WRONG_PASSWORD when the server does not know the password (or somebody sits in between), WRONG_CLUSTER when the server is
        of another cluster than `known_ca_pem`; nothing secret has been said then.
    """
    ask = _asker(conn)
    greeting = await ask(hello(cluster, "", "auth", identity.host_id()), m.HelloReply)
    if greeting.cluster != cluster:
        raise VstorError(
            ErrorCode.WRONG_CLUSTER,
            f"the MDS serves cluster {greeting.cluster!r}, not {cluster!r}; check -b or bs.list",
        )
    key = await _agree(conn, ask, password)
    confirm = _mac(key, b"client", conn.certificate_sha256, csr_pem)
    reply = await ask(m.AuthFinish(confirm, csr_pem), m.AuthCertificate)
    if not hmac.compare_digest(reply.tag, _mac(key, b"cert", reply.ca_pem, reply.certificate_pem)):
        raise VstorError(ErrorCode.WRONG_PASSWORD)
    if known_ca_pem is not None and known_ca_pem != reply.ca_pem:
        message = f"this node belongs to another cluster named {cluster!r}; remove {paths.cluster_dir(cluster)} to join this one"
        raise VstorError(ErrorCode.WRONG_CLUSTER, message)
    return reply


class _Ask(Protocol):
    async def __call__(self, body: m.RequestBody, kind: type[_Reply]) -> _Reply: ...


def _asker(conn: RpcConnection) -> _Ask:
    """One request after the other on this connection, answers of the kind expected."""
    ids = iter(range(1, 10))

    async def ask(body: m.RequestBody, kind: type[_Reply]) -> _Reply:
        async with asyncio.timeout(STEP_S_MAX):
            reply = await conn.send(m.Request(next(ids), body))
        if not isinstance(reply, kind):
            raise VstorError(ErrorCode.BAD_REQUEST, "the MDS answered with a message of the wrong kind")
        return reply

    return ask


async def _agree(conn: RpcConnection, ask: _Ask, password: bytes) -> bytes:
    """The key both sides have when both know the password. Raises WRONG_PASSWORD when the server does not."""
    params = await ask(m.AuthStart(), m.AuthParams)
    if not (2 <= params.n <= SCRYPT_N_MAX and 1 <= params.r <= SCRYPT_R_MAX and 1 <= params.p <= SCRYPT_P_MAX):
        raise VstorError(ErrorCode.BAD_REQUEST, "the MDS asks for unreasonable scrypt parameters")
    side = SPAKE2_A(
        _scrypt(password, params.salt, params.n, params.r, params.p),
        idA=ID_CLIENT,
        idB=ID_SERVER,
    )
    challenge = await ask(m.AuthExchange(side.start()), m.AuthChallenge)
    try:
        key: bytes = side.finish(challenge.message)
    except (SPAKEError, ValueError, AssertionError) as exc:
        raise VstorError(ErrorCode.BAD_REQUEST, "the MDS sent a malformed password proof") from exc
    if not hmac.compare_digest(challenge.confirm, _mac(key, b"server", conn.certificate_sha256)):
        raise VstorError(ErrorCode.WRONG_PASSWORD)
    return key


async def _auth_node(cluster: str, password: bytes, bootstrap: list[str]) -> bool:
    ca_path, cert_path, key_path = identity.identity_files(cluster)
    known_ca = ca_path.read_bytes() if ca_path.exists() else None
    csr_pem, key_pem = pki.make_csr(identity.hostname())
    conn = await _connect_any(cluster, bootstrap)
    try:
        reply = await prove(conn, cluster, password, csr_pem, known_ca)
    except TimeoutError as exc:
        raise VstorError(ErrorCode.UNREACHABLE, "the MDS stopped answering during authentication") from exc
    finally:
        conn.close()
    changed = False
    if known_ca is None or not _have_current(known_ca, cert_path, key_path) or await _is_refused(cluster, bootstrap):
        # ca.crt last: with it the set is complete, and a rerun after a crash starts from the beginning.
        paths.write_atomic(key_path, key_pem, 0o600)
        paths.write_atomic(cert_path, reply.certificate_pem)
        paths.write_atomic(ca_path, reply.ca_pem)
        changed = True
    return identity.add_to_bs_list(cluster, bootstrap + reply.mds_addresses) or changed


async def _is_refused(cluster: str, bootstrap: list[str]) -> bool:
    """An MDS says that this node's certificate will not do: it was revoked."""
    who = identity.load_identity(cluster)
    context = pki.client_context(who.cert_path, who.key_path, who.ca_path)
    for address in bootstrap:
        try:
            conn = await connect(identity.control_address(address), context, timeout_s=5.0)
        except VstorError:
            continue
        try:
            await _asker(conn)(hello(cluster, who.cluster_id, "ctl", who.host_id), m.HelloReply)
            return False
        except VstorError as exc:
            return exc.code == ErrorCode.DENIED
        finally:
            conn.close()
    return False


async def _change_password(cluster: str, old: bytes, new: bytes, bootstrap: list[str]) -> None:
    who = identity.load_identity(cluster)
    context = pki.client_context(who.cert_path, who.key_path, who.ca_path)
    queue = [identity.control_address(a) for a in bootstrap]
    tried: set[str] = set()
    last = VstorError(ErrorCode.UNREACHABLE, f"no MDS of cluster {cluster} leads at the moment")
    while queue:
        address = queue.pop(0)
        if address in tried:
            continue
        tried.add(address)
        try:
            conn = await connect(address, context, timeout_s=5.0)
        except VstorError as exc:
            last = exc
            continue
        try:
            ask = _asker(conn)
            greeting = await ask(hello(cluster, who.cluster_id, "ctl", who.host_id), m.HelloReply)
            if not greeting.leader:
                queue[:0] = [greeting.leader_address] if greeting.leader_address else []
                continue
            key = await _agree(conn, ask, old)
            verifier = make_verifier(new).to_json()
            await ask(m.AuthChange(_mac(key, b"change", conn.certificate_sha256, verifier), verifier), m.Ok)
            return
        finally:
            conn.close()
    raise last


def change_password(cluster: str, old: bytes, new: bytes, bootstrap: list[str]) -> None:
    """Replace the cluster password; certificates stay valid. bootstrap: MDS-to-MDS addresses. Durable on return.

    Raises: WRONG_PASSWORD, CONFIG (unfit new password), UNREACHABLE, DENIED (this node is not authenticated), LIMIT.
    """
    check_password(new)
    try:
        asyncio.run(_change_password(cluster, old, new, bootstrap))
    except TimeoutError as exc:
        raise VstorError(
            ErrorCode.UNREACHABLE, "the MDS stopped answering; find out with auth-node which password holds"
        ) from exc


def _have_current(ca_pem: bytes, cert_path: Path, key_path: Path) -> bool:
    return (
        cert_path.exists()
        and key_path.exists()
        and pki.is_current(ca_pem, cert_path.read_bytes(), key_path.read_bytes())
    )


async def _connect_any(cluster: str, bootstrap: list[str]) -> RpcConnection:
    """The first that answers; `bootstrap` in the order of preference."""

    async def attempt(address: str) -> RpcConnection:
        return await connect(
            identity.control_address(address), pki.unverified_context(), timeout_s=CONNECT_S_MAX, verified=False
        )

    last = VstorError(ErrorCode.UNREACHABLE, f"no MDS known for cluster {cluster}")
    async with Race(attempt, RpcConnection.abort) as race:
        for address in bootstrap:
            race.add(address)
        while (ended := await race.next()) is not None:
            if isinstance(ended[1], RpcConnection):
                return ended[1]
            last = VstorError(ErrorCode.UNREACHABLE, f"no MDS of cluster {cluster} answers ({ended[1].message})")
    raise last


def auth_node(cluster: str, password: bytes, bootstrap: list[str] | None = None) -> bool:
    """Prove the password to an MDS and store this node's certificate (ca.crt, node.crt, node.key 0600) and the MDSs in bs.list.

    Args: bootstrap: MDS-to-MDS addresses IP[:PORT]; default what discovery finds.
    Returns: whether anything changed; a valid certificate of the same cluster is kept.
    Raises: WRONG_PASSWORD, UNREACHABLE, WRONG_CLUSTER, CONFIG, DENIED when the files cannot be written. Durable on return.
    """
    identity.check_cluster_name(cluster)
    check_password(password)

    async def run() -> bool:
        found = bootstrap or await discovery.addresses(cluster)
        return await _auth_node(cluster, password, [identity.format_address(*identity.parse_address(a)) for a in found])

    try:
        return asyncio.run(run())
    except OSError as exc:
        raise from_os_error(exc, f"cannot write {paths.cluster_dir(cluster)}") from exc
