"""Init scripts: `service vstor-mdsd start` and its like, whatever runs as PID 1."""

from __future__ import annotations

import shlex
from pathlib import Path

from vstor.ctl.programs import vstorctl
from vstor.errors import from_os_error

SCRIPTS = {
    "vstor-mdsd": ("mds", "metadata servers"),
    "vstor-csd": ("cs", "chunk servers"),
    "vstor-client": ("mount", "mounts"),
}


def script(name: str, program: list[str]) -> str:
    """Text of one script."""
    kind, what = SCRIPTS[name]
    text = Path(__file__).with_name("vstor-service").read_text()
    for word, value in (("@NAME@", name), ("@KIND@", kind), ("@WHAT@", what), ("@VSTORCTL@", shlex.join(program))):
        text = text.replace(word, value)
    return text


def install_scripts(root: Path) -> list[Path]:
    """Write etc/init.d scripts below `root`; those that were written because they differed."""
    written = []
    for name in SCRIPTS:
        path = root / "etc/init.d" / name
        text = script(name, vstorctl())
        try:
            if path.exists() and path.read_text() == text and path.stat().st_mode & 0o777 == 0o755:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        except OSError as exc:
            raise from_os_error(exc, f"cannot write {path}") from exc
        written.append(path)
    return written
