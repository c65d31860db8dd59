"""Write README.md of each role from its argument specs, and check that specs, defaults and documents agree.

Usage: role_docs.py [--check]
`--check` writes nothing and exits 1 with a line for each difference: a variable that only one of meta/argument_specs.yml and
defaults/main.yml has, another default, a missing description, a README that is not up to date.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
MISSING = object()


def load(path: Path) -> Any:
    """YAML of a file, an empty mapping when it has none."""
    return (yaml.safe_load(path.read_text()) if path.exists() else None) or {}


def problems_of(role: Path) -> list[str]:
    """Differences of specs and defaults of one role."""
    specs = load(role / "meta" / "argument_specs.yml").get("argument_specs", {})
    defaults = load(role / "defaults" / "main.yml")
    found = []
    if "main" not in specs:
        return [f"{role.name}: meta/argument_specs.yml has no entry point main"]
    options = specs["main"].get("options", {})
    for name in sorted(set(options) ^ set(defaults)):
        where = "meta/argument_specs.yml" if name in options else "defaults/main.yml"
        found.append(f"{role.name}: {name} is only in {where}")
    for name in sorted(set(options) & set(defaults)):
        if options[name].get("default", MISSING) != defaults[name]:
            found.append(
                f"{role.name}: {name} has the default {defaults[name]!r} in defaults/main.yml and another in meta/argument_specs.yml"
            )
        if not options[name].get("description"):
            found.append(f"{role.name}: {name} has no description")
        if not name.startswith(f"{role.name}_"):
            found.append(f"{role.name}: {name} does not begin with the name of the role")
    return found


def cell(value: Any) -> str:
    """A value as one table cell."""
    if value is MISSING:
        return "–"
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    return "`" + text.replace("|", "\\|") + "`"


def table(options: dict[str, Any], prefix: str = "") -> list[str]:
    """Rows for options, and below each those of its elements."""
    rows = []
    for name, option in sorted(options.items()):
        kind = option.get("type", "str")
        if option.get("elements"):
            kind += f" of {option['elements']}"
        if option.get("choices"):
            kind += ": " + ", ".join(str(choice) for choice in option["choices"])
        description = option["description"]
        text = " ".join(description) if isinstance(description, list) else description
        default = "required" if option.get("required") else cell(option.get("default", MISSING))
        rows.append(f"| `{prefix}{name}` | {kind} | {default} | {text.replace('|', chr(92) + '|')} |")
        rows += table(option.get("options", {}), f"{prefix}{name}[].")
    return rows


def readme(role: Path) -> str:
    """The document of one role."""
    specs = load(role / "meta" / "argument_specs.yml")["argument_specs"]
    main = specs["main"]
    lines = [f"# Role {role.name}", "", "<!-- Made from meta/argument_specs.yml by make docs. -->", ""]
    lines += [line for text in main["description"] for line in (text, "")]
    lines += ["```yaml", "- hosts: all", "  roles:", f"    - role: {role.name}", "```", ""]
    if main.get("options"):
        lines += ["| variable | type | default | meaning |", "| --- | --- | --- | --- |", *table(main["options"]), ""]
    for name, entry in sorted(specs.items()):
        if name != "main":
            lines += [
                f"## Entry point {name}",
                "",
                entry["short_description"] + ". " + " ".join(entry["description"]),
                "",
            ]
    tags = sorted({tag for task in load(role / "tasks" / "main.yml") for tag in task.get("tags", [])})
    lines += ["Tags: " + ", ".join(f"`{tag}`" for tag in tags) + ".", ""]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Exit code: 0 fine, 1 differences."""
    check = "--check" in argv
    found = []
    for role in sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir()):
        problems = problems_of(role)
        found += problems
        if problems:
            continue
        file, text = role / "README.md", readme(role)
        if not check:
            file.write_text(text)
        elif not file.exists() or file.read_text() != text:
            found.append(f"{role.name}: README.md is not up to date; run make docs")
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
