"""A stand-in for vstorctl: keeps its world in a JSON file and answers like the real one.

The file (environment FAKE_VSTORCTL_STATE) holds: services, status, attributes, config, calls (argv and standard input of each run),
fail (verb -> [exit code, message]),
statuses (what the next questions for the status get, in this order, before status).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

READING = {"status", "discover", "list-services", "get-attr", "get-config"}


def value_after(argv: list[str], flag: str, default: str = "") -> str:
    """The word after a flag."""
    return argv[argv.index(flag) + 1] if flag in argv else default


def add(state: dict[str, Any], kind: str, path: str, **extra: Any) -> dict[str, Any]:
    """Register a service."""
    ids = {"mds": 1, "etcd": 1, "cs": 1025, "mount": 1}
    number = ids[kind] + sum(1 for item in state["services"] if item["kind"] == kind)
    entry = {"kind": kind, "id": str(number), "path": path, "state": "stopped", "enabled": False, "extra": extra}
    state["services"].append(entry)
    return entry


def act(state: dict[str, Any], cluster: str, verb: str, argv: list[str]) -> Any:
    """Do a verb; its JSON."""
    etc = Path(os.environ["VSTOR_ETC"]) / "clusters" / cluster
    if verb == "status":
        return state["statuses"].pop(0) if state.get("statuses") else state["status"]
    if verb == "discover":
        return [{"cluster": cluster, "cluster_id": state["status"]["cluster"]["id"], "authenticated": True, "mds": []}]
    if verb == "list-services":
        return state["services"]
    if verb in ("get-attr", "set-attr"):
        state["attributes"].update(word.split("=", 1) for word in argv if "=" in word)
        return {"cluster": cluster, "path": "/", "attributes": state["attributes"]}
    if verb == "get-config":
        return state["config"]
    if verb == "set-config":
        state["config"].update(word.split("=", 1) for word in argv if "=" in word)
        return {}
    if verb in ("make-mds", "auth-node"):
        etc.mkdir(parents=True, exist_ok=True)
        (etc / "node.crt").write_text("certificate\n")
        return add(state, "mds", value_after(argv, "-r")) if verb == "make-mds" else {"authenticated": True}
    if verb == "make-cs":
        return add(state, "cs", value_after(argv, "-r"), tier=int(value_after(argv, "-t", "0")))
    if verb in ("rm-cs", "rm-mds"):
        kind = verb.removeprefix("rm-")
        if "releasing" in state:
            return state["releasing"]
        if "--dry-run" in argv:
            return {"replicas_left": 0, "would_lose": 0}
        state["status"][kind] = [item for item in state["status"][kind] if str(item["id"]) != argv[-1]]
        return {"state": "dropped"}
    if verb == "mount":
        options = value_after(argv, "-o")
        found = [item for item in state["services"] if item["kind"] == "mount"]
        entry = found[0] if found else add(state, "mount", argv[0])
        entry.update(state="running", enabled=True, extra={"options": ["-o", options]} if options else {})
        return {"changed": True}
    if verb == "umount":
        if "--keep" in argv:
            for item in state["services"]:
                if item["kind"] == "mount":
                    item["state"] = "stopped"
        else:
            state["services"] = [item for item in state["services"] if item["kind"] != "mount"]
        return {"changed": True}
    if verb == "backup":
        return {"path": argv[0]}
    if verb == "restore":
        return add(state, "mds", value_after(argv, "-r"))
    if verb == "report":
        return {"path": value_after(argv, "-o")}
    if verb == "maintenance":
        for item in state["status"]["cs"]:
            if str(item["id"]) == argv[1]:
                item["admin"] = "maintenance" if argv[0] == "on" else "normal"
        return {}
    if verb == "service" and argv[0] == "forget":
        state["services"] = [item for item in state["services"] if item.get("name") not in argv[1:]]
        return {"changed": argv[1:]}
    if verb == "service":
        for item in state["services"]:
            if argv[1] in (item["kind"], "all"):
                if argv[0] in ("start", "restart"):
                    item["state"] = "running"
                elif argv[0] == "stop":
                    item["state"] = "stopped"
                else:
                    item["enabled"] = argv[0] == "enable"
        return {"changed": []}
    raise SystemExit(f"fake vstorctl: no verb {verb}")


def main() -> int:
    """Like vstorctl -c CLUSTER VERB … --format json."""
    file = Path(os.environ["FAKE_VSTORCTL_STATE"])
    state = json.loads(file.read_text())
    argv = sys.argv[1:]
    assert argv[0] == "-c", argv
    assert argv[-2:] == ["--format", "json"], argv
    cluster, verb, rest = argv[1], argv[2], argv[3:-2]
    stdin = "" if verb in READING else sys.stdin.read()
    state["calls"].append({"verb": verb, "argv": rest, "stdin": stdin})
    failure = state["fail"].get(verb)
    if failure:
        file.write_text(json.dumps(state))
        print(f"vstorctl: {failure[1]}", file=sys.stderr)
        return int(failure[0])
    answer = act(state, cluster, verb, rest)
    file.write_text(json.dumps(state))
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
