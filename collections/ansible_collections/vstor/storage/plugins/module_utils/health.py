# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
"""May the next host be touched? A status in, reasons against it out. No I/O, no clock.

DESIGN: the gate looks at chunks and quorum, never at units: a daemon that runs says nothing about its data. Scrubbing, balancing and spare replicas
are no reasons. What belongs to chunk servers that were announced (maintenance) is expected and is no reason either.
"""

from __future__ import annotations

# Every state here means that data or writes are in danger, or soon would be.
BAD_CHUNKS = ("offline", "blocked", "pending", "urgent")
# These are expected while a chunk server is announced to be away.
THIN_CHUNKS = ("degraded", "standby")
BAD_CS = ("failed", "failed releasing", "inactive", "offline", "ill")


def reasons(status, maintenance=(), mds_expected=0, mds_lag_max=1000, free_percent_min=5):
    """Lines, each a reason to wait; an empty list when the cluster is as it should be.

    Args:
        status: what vstorctl status prints, None when no MDS answers.
        maintenance: ids of chunk servers that are away on purpose.
        mds_expected: how many MDSs there should be, 0 for those the cluster knows.
        mds_lag_max: revisions a standby may be behind the leader.
        free_percent_min: what must be left of the other hosts' space after the largest host's data have gone to them.
    """
    if status is None:
        return ["no MDS answers"]
    away = set(maintenance) | {cs["id"] for cs in status["cs"] if cs.get("admin") == "maintenance"}
    return (
        cluster_reasons(status["cluster"])
        + mds_reasons(status["mds"], mds_expected, mds_lag_max)
        + cs_reasons(status["cs"], set(maintenance))
        + chunk_reasons(status["chunks"], bool(away))
        + space_reasons(status["cs"], free_percent_min)
    )


def cluster_reasons(cluster):
    """Of the cluster as a whole. `degraded` is told by the servers and chunks that cause it."""
    found = []
    if cluster["state"] in ("failure", "unknown"):
        found.append("the cluster's state is %s" % cluster["state"])
    if cluster.get("grace"):
        found.append("a new leader waits for the clients to come back")
    return found


def mds_reasons(servers, expected, lag_max):
    """Quorum: all there, one leads, the others have caught up."""
    found = ["MDS#%s is %s" % (mds["id"], mds["state"]) for mds in servers if mds["state"] != "avail"]
    if expected and len(servers) != expected:
        found.append("%d of %d MDSs are known" % (len(servers), expected))
    for mds in servers:
        member = mds.get("etcd")
        if member and not member["in_step"]:
            found.append(
                "the etcd member of MDS#%s %s" % (mds["id"], "is behind" if member["alive"] else "does not answer")
            )
    leaders = [mds for mds in servers if mds["leader"]]
    if len(leaders) != 1:
        found.append("no MDS leads" if not leaders else "several MDSs say that they lead")
        return found
    newest = leaders[0].get("applied_revision", 0)
    for mds in servers:
        behind = newest - mds.get("applied_revision", newest)
        if mds["state"] == "avail" and (not mds.get("in_step", True) or behind > lag_max):
            found.append("MDS#%s has not caught up (%d revisions behind)" % (mds["id"], behind))
    return found


def cs_reasons(servers, maintenance):
    """Every chunk server active, and its replicas known."""
    found = []
    for cs in servers:
        if cs["id"] in maintenance or cs["state"] == "dropped":
            continue
        if cs["state"] in BAD_CS:
            found.append("CS#%s on %s is %s" % (cs["id"], cs["host"], cs["state"]))
        elif cs["state"] == "active" and cs.get("inventory_complete") is False:
            found.append("CS#%s on %s has not told all that it holds" % (cs["id"], cs["host"]))
    return found


def chunk_reasons(chunks, some_away):
    """Chunks in danger; thin ones unless somebody is away on purpose."""
    names = BAD_CHUNKS if some_away else BAD_CHUNKS + THIN_CHUNKS
    return ["%d chunks are %s" % (chunks[name], name) for name in names if chunks.get(name, 0) > 0]


def space_reasons(servers, percent_min):
    """The others could take the data of any host; the worst one is named."""
    hosts = {}
    for cs in servers:
        if cs["state"] != "dropped":
            space, free = hosts.get(cs["host"], (0, 0))
            hosts[cs["host"]] = (space + cs["space_bytes"], free + cs["free_bytes"])
    if len(hosts) < 2:
        return []
    found = []
    for lost, (space, free) in sorted(hosts.items()):
        rest_space = sum(other[0] for host, other in hosts.items() if host != lost)
        rest_free = sum(other[1] for host, other in hosts.items() if host != lost)
        left = 100 * (rest_free - (space - free)) / rest_space if rest_space else 0
        if left < percent_min:
            found.append((left, lost))
    if not found:
        return []
    left, lost = min(found)
    return [
        "without %s %.0f %% of the space would be left, less than %s %% (vstor_gate_free_percent_min)"
        % (lost, max(left, 0), percent_min)
    ]


def progress(status):
    """Something that changes when the cluster gets better: compared while waiting."""
    if status is None:
        return None
    thin = sum(status["chunks"].get(name, 0) for name in BAD_CHUNKS + THIN_CHUNKS)
    active = sum(cs["state"] == "active" for cs in status["cs"])
    return (
        thin,
        active,
        sum(mds["state"] == "avail" for mds in status["mds"]),
        sum(cs["replicas"] for cs in status["cs"]),
    )
