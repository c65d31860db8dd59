"""Write README.md of each role from its argument specs, and of the collection, and check that specs, defaults and documents agree.

Usage: role_docs.py [--check]
`--check` writes nothing and exits 1 with a line for each difference: a variable that only one of meta/argument_specs.yml and
defaults/main.yml has, another default, a missing description, a README that is not up to date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
COLLECTION = ROOT / "collections/ansible_collections/vstor/storage"
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


def first_sentence(text: str) -> str:
    """Up to the first full stop."""
    return re.split(r"(?<=[^.])\.(?:\s|$)", " ".join(text.split()), maxsplit=1)[0]


def collection_readme() -> str:
    """What is in the collection: a table each of playbooks, roles and modules, from their own words."""
    playbooks, roles, modules = [], [], []
    for file in sorted((ROOT / "playbooks").glob("*.yml")):
        comment = re.match(r"---\n((?:#.*\n)+)", file.read_text())
        said = first_sentence(comment[1].replace("#", " ")) if comment else ""
        playbooks.append(f"| `vstor.storage.{file.stem.replace('-', '_')}` | {said} |")
    for role in sorted((ROOT / "roles").iterdir()):
        main = load(role / "meta/argument_specs.yml")["argument_specs"]["main"]
        roles.append(f"| `vstor.storage.{role.name}` | {main['short_description']} |")
    for file in sorted((COLLECTION / "plugins/modules").glob("*.py")):
        found = re.search(r"^short_description: (.*)$", file.read_text(), flags=re.MULTILINE)
        modules.append(f"| `vstor.storage.{file.stem}` | {found[1] if found else ''} |")
    return f"""# Collection vstor.storage

<!-- Made by make docs. -->

Playbooks, roles and modules that make vstor clusters, run them and look after them.

    ansible-galaxy collection install vstor-storage-VERSION.tar.gz
    ansible-playbook vstor.storage.site -i inventory

Without the tree of vstor there are no wheels to build: set `vstor_install_method: package` and name the repository (role `vstor_repo`). Variables:
the READMEs of the roles. Only `ansible.builtin` is needed besides.

| playbook | does |
| --- | --- |
{chr(10).join(playbooks)}

| role | does |
| --- | --- |
{chr(10).join(roles)}

The modules call `vstorctl … --format json` on the host, support check and diff mode, and change nothing when run again.

| module | does |
| --- | --- |
{chr(10).join(modules)}

The filter `vstor.storage.inventory_problems` checks inventory and variables as a whole. `ansible-doc vstor.storage.vstor_cs` prints the documentation of
a module, `ansible-doc -t role vstor.storage.vstor_cs` that of a role.
"""


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
    readme_file, text = COLLECTION / "README.md", collection_readme()
    if not check:
        readme_file.write_text(text)
    elif readme_file.read_text() != text:
        found.append("collection vstor.storage: README.md is not up to date; run make docs")
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
