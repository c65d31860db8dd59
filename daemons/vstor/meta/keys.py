"""How the model's keys lie in the store.

The key schema and the record encodings are the model's (`vstor.model.keys`, `vstor.model.records`), because the model may not import
this package; they are re-exported here for the store and its tools. This module adds the prefix and the keys that are the store's own.
"""

from __future__ import annotations

from vstor.model.keys import load_spans
from vstor.model.records import SCHEMA, decode, encode

PREFIX = b"vstor/"  # before every key in etcd
# Keys of the shell (no kind byte of the model): State.apply ignores them.
LEADER_KEY = b"leader"  # value: mds id and address; its create revision is the epoch
SEQ_KEY = b"seq"  # chained by every transaction

__all__ = [
    "LEADER_KEY",
    "PREFIX",
    "SCHEMA",
    "SEQ_KEY",
    "decode",
    "encode",
    "load_spans",
]
