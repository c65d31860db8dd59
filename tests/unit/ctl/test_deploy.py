"""deploy with a real ansible-runner on small playbooks."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from vstor.ctl.playbook_progress import Progress, reason_of

from tests.unit.ctl.conftest import Ctl

pytestmark = pytest.mark.timeout(180)

PLAYBOOK = """
- name: Small play
  hosts: all
  gather_facts: false
  tasks:
    - name: Make a file
      ansible.builtin.copy: {content: "{{ inventory_hostname }}", dest: "{{ place }}/{{ inventory_hostname }}", mode: "0600"}
      tags: [files]
    - name: Handle a secret
      ansible.builtin.debug: {msg: "{{ lookup('ansible.builtin.env', 'HIDDEN_PASSWORD') }}"}
      no_log: true
    - name: Break on one host
      ansible.builtin.fail: {msg: "it is broken, mend it"}
      when: broken | default('') == inventory_hostname
"""
INVENTORY = """[all]
h1
h2
[all:vars]
ansible_connection=local
ansible_python_interpreter={{ ansible_playbook_python }}
"""
SECRET = "hunter2-in-the-environment"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory as the tree of vstor is."""
    directory = tmp_path / "project"
    (directory / "playbooks").mkdir(parents=True)
    (directory / "site.yml").write_text("- import_playbook: playbooks/small.yml\n")
    (directory / "playbooks/small.yml").write_text(PLAYBOOK)
    (directory / "inventory").write_text(INVENTORY)
    (directory / "ansible.cfg").write_text(
        f"[defaults]\nlocal_tmp = {tmp_path}/ansible\nremote_tmp = {tmp_path}/ansible\n"
    )
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HIDDEN_PASSWORD", SECRET)
    monkeypatch.delenv("ANSIBLE_CONFIG", raising=False)
    return directory


def args(project: Path, *more: str) -> list[str]:
    return ["deploy", "--project", str(project), "-e", f"place={project.parent}", *more]


def everything_below(directory: Path) -> str:
    return "".join(p.read_text(errors="replace") for p in directory.rglob("*") if p.is_file())


def test_progress_and_summary(ctl: Ctl, project: Path, tmp_path: Path) -> None:
    done = ctl(*args(project))
    assert done.code == 0, done.out + done.err
    lines = [line[5:] for line in done.out.splitlines()]
    assert " Small play" in lines
    assert "   Make a file: 2 changed (h1 h2)" in lines
    assert "h1: 1 ok, 1 changed" in done.out
    assert (tmp_path / "h1").read_text() == "h1"
    again = json.loads(ctl(*args(project, "--format", "json")).out)
    assert (again["outcome"], again["failed"]) == ("done", [])
    assert again["hosts"]["h2"] == {"ok": 2, "skipped": 1}


def test_the_record_is_private_and_without_secrets(ctl: Ctl, project: Path, tmp_path: Path) -> None:
    value = json.loads(ctl(*args(project, "-e", "token=s3cr3t-variable", "--format", "json")).out)
    base = tmp_path / "state/vstor/deploy"
    assert stat.S_IMODE(base.stat().st_mode) == 0o700
    record = Path(value["record"])
    assert record.parent.parent == base
    text = everything_below(base)
    assert "Make a file" in text
    assert SECRET not in text
    assert "s3cr3t-variable" not in text


def test_check_limit_and_tags(ctl: Ctl, project: Path, tmp_path: Path) -> None:
    done = ctl(*args(project, "--check"))
    assert done.code == 0
    assert "2 changed" in done.out
    assert not (tmp_path / "h1").exists()
    value = json.loads(ctl(*args(project, "--limit", "h2", "--tags", "files", "--format", "json")).out)
    assert value["hosts"] == {"h2": {"changed": 1}}
    assert not (tmp_path / "h1").exists()
    assert (tmp_path / "h2").exists()


def test_a_failed_task_is_named_and_the_rest_goes_on(ctl: Ctl, project: Path) -> None:
    done = ctl(*args(project, "small", "-e", "broken=h2"))
    assert done.code == 15
    assert "vstorctl: h2: Break on one host: failed: it is broken, mend it" in done.err
    assert "1 skipped, 1 failed (h2)" in done.out


def test_an_unreachable_host(ctl: Ctl, project: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("h3 ansible_host=127.0.0.1 ansible_port=1 ansible_ssh_timeout=5\n")
    done = ctl(*args(project, "-i", str(tmp_path / "other")))
    assert done.code == 10
    assert "h3: Make a file: unreachable: " in done.err


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["nosuch"], 3, "nosuch: no such playbook"),
        (["-i", "/nosuch"], 3, "/nosuch: no such inventory"),
        (["bad.yml"], 2, "Ansible did not run the playbook"),
        (["--limit", "nosuch"], 2, "Ansible did not run the playbook"),
        (["-e", "@/nosuch.yml"], 2, "/nosuch.yml"),
    ],
)
def test_what_is_refused(ctl: Ctl, project: Path, more: list[str], code: int, said: str) -> None:
    (project / "bad.yml").write_text("- hosts: [\n")
    done = ctl(*args(project, *more))
    assert done.code == code, done.out + done.err
    assert said in done.err


def test_verbose_is_ansibles_own_output(ctl: Ctl, project: Path) -> None:
    done = ctl(*args(project, "-v"))
    assert "TASK [Make a file]" in done.out
    assert "PLAY RECAP" in done.out


def event(kind: str, created: str = "", **data: Any) -> dict[str, Any]:
    return {"event": kind, "created": created, "event_data": data}


def test_many_hosts_are_counted_not_listed() -> None:
    progress = Progress()
    progress.feed(event("playbook_on_play_start", "2026-01-01T00:00:00+00:00", play="P"))
    progress.feed(event("playbook_on_task_start", task="T"))
    for i in range(100):
        progress.feed(event("runner_on_ok", host=f"n{i:03}", res={"changed": i < 20}))
    assert progress.feed(event("playbook_on_stats", "2026-01-01T00:02:05+00:00")) == [
        "02:05   T: 80 ok, 20 changed (n000 n001 n002 n003 n004 n005 n006 n007 and 12 more)"
    ]


def test_reasons() -> None:
    assert reason_of({"censored": "x", "msg": "secret"}) == "hidden, as the task has no_log"
    assert reason_of({"msg": "All items", "results": [{"msg": "fine"}, {"failed": True, "msg": "a\n b"}]}) == "a b"
    assert reason_of({"module_stderr": "no python"}) == "no python"
    assert reason_of({}) == "no reason given"


def test_ignored_errors_are_no_failures() -> None:
    progress = Progress()
    assert progress.feed(event("runner_on_failed", host="h", task="T", ignore_errors=True, res={"msg": "x"})) == []
    assert progress.failed == []
