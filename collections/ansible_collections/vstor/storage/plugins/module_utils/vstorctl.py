# Copyright: the vstor engineers
# Apache License 2.0 (see LICENSE)
"""The one way from modules to a cluster: vstorctl with JSON output.

DESIGN: modules ask for the present state, compare, and call one verb when something differs. `VstorCtl` runs the tool,
turns its output into data and a failure into one clear line. On a host without the tool (check mode before the
first deployment) every question is answered with "nothing there".
"""

from __future__ import annotations

import json
import os

from ansible.module_utils.basic import AnsibleModule

# Where the tool is when the PATH of the connection does not have it.
_OPT_DIRS = ["/usr/local/bin", "/opt/vstor/bin"]


def make_module(spec, **kwargs):
    """An AnsibleModule with the options that all modules share, supporting check mode."""
    options = {
        "cluster": {"type": "str", "required": True},
        "executable": {"type": "str", "default": "vstorctl"},
    }
    options.update(spec)
    return AnsibleModule(argument_spec=options, supports_check_mode=True, **kwargs)


class VstorCtl:
    """vstorctl for one cluster.

    Args:
        required: a missing tool ends the module, except in check mode.
    Attributes:
        available: the tool is installed on this host.
    """

    def __init__(self, module, required=True):
        self._module = module
        self.cluster = module.params["cluster"]
        self._binary = module.get_bin_path(module.params["executable"], required=False, opt_dirs=_OPT_DIRS)
        self.available = self._binary is not None
        if not self.available and required and not module.check_mode:
            module.fail_json(
                msg="%s is not installed on this host; run the role vstor_common (or make up) first"
                % module.params["executable"]
            )

    def run(self, *args, **kwargs):
        """Run a verb; returns (rc, data, message).

        Keyword arguments:
            stdin: one line for standard input (a password: it is never in argv); its line break is added.
        data is the parsed JSON of standard output, None when there is none; message is the last line of standard error.
        """
        argv = [self._binary, "-c", self.cluster, *args, "--format", "json"]
        stdin = kwargs.get("stdin")
        rc, out, err = self._module.run_command(argv, data=stdin, environ_update={"LC_ALL": "C.UTF-8"})
        data = None
        if out.strip():
            try:
                data = json.loads(out)
            except ValueError:
                if rc == 0:
                    self._module.fail_json(
                        msg="vstorctl %s printed no JSON" % args[0], stdout=out[:2000], stderr=err[:2000]
                    )
        lines = [line for line in err.splitlines() if line.strip()]
        message = lines[-1] if lines else out.strip()[:500]
        return rc, data, message[len("vstorctl: ") :] if message.startswith("vstorctl: ") else message

    def call(self, *args, **kwargs):
        """Run a verb that must succeed; returns its data. Ends the module with the tool's message otherwise."""
        rc, data, message = self.run(*args, **kwargs)
        if rc != 0:
            self._module.fail_json(msg="vstorctl %s: %s" % (args[0], message or "exit code %d" % rc), rc=rc)
        return data

    def services(self, kind=None):
        """Services of the cluster on this host: dicts with kind, id, path, state (running, …), enabled."""
        if not self.available:
            return []
        data = self.call("list-services") or []
        items = data.get("services", []) if isinstance(data, dict) else data
        return [item for item in items if kind in (None, "all", item.get("kind"))]

    def service_at(self, kind, path):
        """The service whose repository (mount: mount point) is `path`, or None."""
        wanted = os.path.normpath(path)
        for item in self.services(kind):
            if os.path.normpath(item.get("path", "")) == wanted:
                return item
        return None

    def authenticated(self):
        """This host holds a certificate of the cluster."""
        root = os.environ.get("VSTOR_ETC", "/etc/vstor")
        return os.path.exists(os.path.join(root, "clusters", self.cluster, "node.crt"))

    def cluster_id(self):
        """Id of the cluster that this host belongs to, empty when it belongs to none. Asks no MDS."""
        if not self.available or not self.authenticated():
            return ""
        found = [item for item in self.call("discover", "--source", "bs.list") if item.get("cluster") == self.cluster]
        return found[0].get("cluster_id", "") if found else ""

    def status(self):
        """The cluster's status, or None when there is no cluster or no MDS answers."""
        if not self.available or not self.authenticated():
            return None
        rc, data, _message = self.run("status", "--timeout", "5")
        return data if rc == 0 and isinstance(data, dict) else None


def is_running(service):
    """The service is up or coming up."""
    return service.get("state") in ("running", "starting")


def finish(module, changed, before, after, **facts):
    """End the module with a result that has a diff of the two states."""
    result = {"changed": changed}
    result.update(facts)
    if module._diff:
        result["diff"] = {"before": _text(before), "after": _text(after)}
    module.exit_json(**result)


def _text(state):
    return "".join("%s: %s\n" % (key, state[key]) for key in sorted(state))
