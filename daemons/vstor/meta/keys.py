"""How the model's keys lie in the store.

The keys and records themselves are the model's (`vstor.model.keys`, `vstor.model.records`), because the model may not import this
package. Here: the prefix, the keys of the store's own, and the spans of a cold load.
Binary keys: first byte type, second byte shard, so that a load ranges bounded spans (research: an etcd 3.4 range with a
limit still walks everything).
"""

from __future__ import annotations

PREFIX = b"vstor/"  # before every key in etcd
LEADER_KEY = b"leader"  # value: mds id and address; its create revision is the epoch
SEQ_KEY = b"seq"  # chained by every transaction
