"""etcd's messages and stubs out of the `etcd3` package, on whatever protobuf is installed.

DESIGN: etcd3 0.12.0's generated modules do not import with protobuf 4 and later, but hold the serialized descriptors. They are read
with `ast` (never executed), get the fields that etcd 3.4 added, and are built in a descriptor pool of our own, so that nothing
clashes with another etcd client in the process. The package itself stays unmodified; its client classes are not used (blocking,
no failover, no watch resume).
"""

from __future__ import annotations

import ast
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any


def _bytes_of(node: ast.expr) -> bytes:
    value = ast.literal_eval(node.args[0] if isinstance(node, ast.Call) else node)
    return value if isinstance(value, bytes) else value.encode("latin1")


def _serialized(path: Path) -> bytes:
    tree = ast.parse(path.read_bytes())
    return next(
        _bytes_of(keyword.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "FileDescriptor"
        for keyword in node.keywords
        if keyword.arg == "serialized_pb"
    )


def _add_newer_fields(fd: Any, field: Any) -> None:
    """What rpc.proto of etcd 3.4 has and etcd3's of 3.3 has not."""
    messages = {message.name: message for message in fd.message_type}
    if "WatchProgressRequest" in messages:
        return
    optional = field.LABEL_OPTIONAL
    fd.message_type.add(name="WatchProgressRequest")
    messages["WatchRequest"].field.add(
        name="progress_request",
        number=3,
        type=field.TYPE_MESSAGE,
        label=optional,
        type_name=".etcdserverpb.WatchProgressRequest",
        oneof_index=0,
    )
    create = messages["WatchCreateRequest"].field
    create.add(name="watch_id", number=7, type=field.TYPE_INT64, label=optional)
    create.add(name="fragment", number=8, type=field.TYPE_BOOL, label=optional)
    messages["WatchResponse"].field.add(name="fragment", number=7, type=field.TYPE_BOOL, label=optional)
    status = messages["StatusResponse"].field
    status.add(name="dbSizeInUse", number=9, type=field.TYPE_INT64, label=optional)
    messages["Member"].field.add(name="isLearner", number=5, type=field.TYPE_BOOL, label=optional)
    messages["MemberAddRequest"].field.add(name="isLearner", number=2, type=field.TYPE_BOOL, label=optional)
    fd.message_type.add(name="MemberPromoteRequest").field.add(
        name="ID", number=1, type=field.TYPE_UINT64, label=optional
    )
    promoted = fd.message_type.add(name="MemberPromoteResponse").field
    promoted.add(
        name="header",
        number=1,
        type=field.TYPE_MESSAGE,
        label=optional,
        type_name=".etcdserverpb.ResponseHeader",
    )
    promoted.add(
        name="members",
        number=2,
        type=field.TYPE_MESSAGE,
        label=field.LABEL_REPEATED,
        type_name=".etcdserverpb.Member",
    )


def _load() -> tuple[Any, Any]:
    from google.protobuf import descriptor_pb2, descriptor_pool
    from google.protobuf.internal import builder

    spec = importlib.util.find_spec("etcd3")
    if spec is None or spec.origin is None:
        raise ImportError("the package etcd3 is not installed")
    base = Path(spec.origin).parent / "etcdrpc"
    pool = descriptor_pool.DescriptorPool()
    package = types.ModuleType("vstor.meta._etcdrpc")
    package.__path__ = []
    for name in ("kv", "auth", "rpc"):
        fd = descriptor_pb2.FileDescriptorProto.FromString(_serialized(base / f"{name}_pb2.py"))
        if name == "rpc":
            _add_newer_fields(fd, descriptor_pb2.FieldDescriptorProto)
        descriptor = pool.AddSerializedFile(fd.SerializeToString()) or pool.FindFileByName(fd.name)
        module = types.ModuleType(f"etcd3.etcdrpc.{name}_pb2")
        module.DESCRIPTOR = descriptor  # type: ignore[attr-defined]
        builder.BuildMessageAndEnumDescriptors(descriptor, module.__dict__)
        builder.BuildTopDescriptorsAndMessages(descriptor, module.__name__, module.__dict__)
        setattr(package, f"{name}_pb2", module)
    return package.rpc_pb2, _stubs(base, package)


def _stubs(base: Path, package: Any) -> Any:
    """The generated stub module, run with our message module in the place of etcd3's."""
    spec = importlib.util.spec_from_file_location("vstor.meta._etcdrpc_grpc", base / "rpc_pb2_grpc.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    borrowed = {"etcd3": types.ModuleType("etcd3"), "etcd3.etcdrpc": package}
    saved = {name: sys.modules.get(name) for name in borrowed}
    sys.modules.update(borrowed)
    try:
        spec.loader.exec_module(module)
    finally:
        for name, old in saved.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old
    return module


rpc, stubs = _load()
PUT, DELETE = 0, 1  # mvccpb.Event.EventType


def backend() -> str:
    """upb, cpp or python; the last is seven to ten times slower."""
    from google.protobuf.internal import api_implementation

    return str(api_implementation.Type())
