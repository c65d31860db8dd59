"""The cluster's CA and its certificates (X.509, EC P-256).

DESIGN: names of hosts are not checked: who may do what follows from the CA that signed and from the role in the subject's OU,
which only the CA writes (a CSR's own subject is ignored). A node certificate is for clients only (extended key usage too), so it
cannot pose as an MDS. The CA's subject is O = cluster id, CN = cluster name.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from vstor.codes_gen import ErrorCode
from vstor.errors import VstorError

ROLE_MDS = "MDS"
ROLE_NODE = "NODE"
ROLE_ETCD = "ETCD"
CA_DAYS = 36500
CERTIFICATE_DAYS = 3650
RENEW_BEFORE_DAYS = 90
BACKDATE = dt.timedelta(days=1)  # clocks of nodes differ
PEM_BYTES_MAX = 65536


def make_key() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """(private key, its unencrypted PKCS#8 PEM: write it with mode 0600)."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return key, pem


def _name(common: str, unit: str, organisation: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def make_ca(cluster: str, cluster_id: str, unit: str = "CA") -> tuple[bytes, bytes]:
    """(certificate PEM, key PEM) of a new CA."""
    key, key_pem = make_key()
    name = _name(cluster, unit, cluster_id)
    now = dt.datetime.now(dt.UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + dt.timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return cert.public_bytes(serialization.Encoding.PEM), key_pem


def make_csr(common: str) -> tuple[bytes, bytes]:
    """(CSR PEM, key PEM) with a fresh key."""
    key, key_pem = make_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM), key_pem


def issue(
    ca_pem: bytes,
    ca_key_pem: bytes,
    csr_pem: bytes,
    *,
    common: str,
    role: str,
    addresses: Iterable[str] = (),
) -> bytes:
    """Certificate PEM for the key of `csr_pem`; subject and role are the caller's, whatever the CSR says.

    Args: addresses: IPs for the subject alternative name (etcd's Go clients check it).
    Raises: BAD_REQUEST for a CSR that is malformed, badly signed, or not on P-256.
    """
    if len(csr_pem) > PEM_BYTES_MAX:
        raise VstorError(ErrorCode.TOO_LARGE, "certificate request too large")
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        public = csr.public_key()
        valid = csr.is_signature_valid
    except ValueError as exc:
        raise VstorError(ErrorCode.BAD_REQUEST, "malformed certificate request") from exc
    if not valid or not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise VstorError(
            ErrorCode.BAD_REQUEST,
            "certificate request must be self-signed by an EC P-256 key",
        )
    ca = x509.load_pem_x509_certificate(ca_pem)
    ca_key = serialization.load_pem_private_key(ca_key_pem, None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    organisation = _attribute(ca.subject, NameOID.ORGANIZATION_NAME)
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if role != ROLE_NODE:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(common[:64], role, organisation))
        .issuer_name(ca.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + dt.timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
    )
    names = [x509.IPAddress(ipaddress.ip_address(a)) for a in dict.fromkeys(addresses)]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _attribute(name: x509.Name, oid: x509.ObjectIdentifier) -> str:
    found = name.get_attributes_for_oid(oid)
    return str(found[0].value) if found else ""


def read_ca_names(ca_pem: bytes, what: str) -> tuple[str, str]:
    """(cluster name, cluster id) of a CA certificate. Raises DAMAGED naming `what`."""
    try:
        subject = x509.load_pem_x509_certificate(ca_pem).subject
    except ValueError as exc:
        raise VstorError(
            ErrorCode.DAMAGED,
            f"{what} is not a certificate; restore it, or remove it and run auth-node again",
        ) from exc
    return _attribute(subject, NameOID.COMMON_NAME), _attribute(subject, NameOID.ORGANIZATION_NAME)


def is_current(ca_pem: bytes, cert_pem: bytes, key_pem: bytes) -> bool:
    """Whether the certificate is signed by this CA, fits the key, and is good for RENEW_BEFORE_DAYS more."""
    try:
        ca = x509.load_pem_x509_certificate(ca_pem)
        cert = x509.load_pem_x509_certificate(cert_pem)
        key = serialization.load_pem_private_key(key_pem, None)
        cert.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return False
    until = cert.not_valid_after_utc - dt.timedelta(days=RENEW_BEFORE_DAYS)
    return (
        isinstance(key, ec.EllipticCurvePrivateKey)
        and key.public_key() == cert.public_key()
        and dt.datetime.now(dt.UTC) < until
    )


def peer_role(cert: dict[str, Any] | None) -> str:
    """OU of the peer's verified certificate as ssl's getpeercert() gives it; "" without one."""
    for rdn in (cert or {}).get("subject", ()):
        for key, value in rdn:
            if key == "organizationalUnitName":
                return str(value)
    return ""


def peer_common_name(cert: dict[str, Any] | None) -> str:
    """CN of the peer's verified certificate; "" without one."""
    for rdn in (cert or {}).get("subject", ()):
        for key, value in rdn:
            if key == "commonName":
                return str(value)
    return ""


def _context(protocol: int, cert: Path, key: Path, ca: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    try:
        context.load_verify_locations(ca)
        context.load_cert_chain(cert, key)
    except FileNotFoundError as exc:
        raise VstorError(ErrorCode.DENIED, f"certificate files missing: {exc.filename or cert}") from exc
    except PermissionError as exc:
        raise VstorError(ErrorCode.DENIED, f"cannot read {key} or {cert}: permission denied") from exc
    except ssl.SSLError as exc:
        raise VstorError(
            ErrorCode.DAMAGED,
            f"{cert}, {key} or {ca} is damaged ({exc.reason}); run auth-node again",
        ) from exc
    _check_dates(cert)
    return context


def _check_dates(path: Path) -> None:
    """Raises DENIED with the mend for a certificate whose time is over, DAMAGED for none."""
    try:
        cert = x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as exc:
        raise VstorError(ErrorCode.DAMAGED, f"{path} is no certificate; run auth-node again") from exc
    until = cert.not_valid_after_utc
    if dt.datetime.now(dt.UTC) >= until:
        mend = "run vstorctl auth-node again" if path.name == "node.crt" else "make this MDS again (rm-mds, make-mds)"
        raise VstorError(ErrorCode.DENIED, f"the certificate {path} expired on {until:%Y-%m-%d}; {mend}")


def client_context(cert: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """TLS 1.3, our certificate shown, the server's verified by the CA (the role check is the connection's)."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, cert, key, ca)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def server_context(cert: Path, key: Path, ca: Path) -> ssl.SSLContext:
    """TLS 1.3; a client certificate is optional here, what is allowed without one is the RPC server's decision."""
    context = _context(ssl.PROTOCOL_TLS_SERVER, cert, key, ca)
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def unverified_context() -> ssl.SSLContext:
    """For auth-node, which knows no CA yet: the password proof binds the server's certificate instead."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
