"""bash completion, made from the argparse tree: `python -m vstor.ctl.completion > /usr/share/bash-completion/completions/vstorctl`."""

from __future__ import annotations

import argparse
import shlex
import sys

from vstor.ctl.main import COMMANDS, build_parser
from vstor.ctl.manpages import verb_parsers

_DIRECTORIES = frozenset({"DIR"})
_FILES = frozenset({"FILE", "PATH", "JOURNAL"})

_TEMPLATE = """# bash completion of vstorctl; made by python -m vstor.ctl.completion
_vstorctl() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}} verb= i skip=
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        if [[ -n $skip ]]; then skip=; continue; fi
        case ${{COMP_WORDS[i]}} in
            {global_with_value}) skip=1 ;;
            -*) ;;
            *) verb=${{COMP_WORDS[i]}}; break ;;
        esac
    done
    case $prev in
        -c | --cluster)
            local clusters=${{VSTOR_ETC:-/etc/vstor}}/clusters
            [[ -d $clusters ]] && COMPREPLY=($(compgen -W "$(command ls -- "$clusters")" -- "$cur"))
            return ;;
    esac
    if [[ -z $verb ]]; then
        COMPREPLY=($(compgen -W {verbs} -- "$cur"))
        return
    fi
    case "$verb $prev" in
{values}
    esac
    case $verb in
{options}
    esac
}}
complete -o bashdefault -o default -F _vstorctl vstorctl
"""


def _takes_value(action: argparse.Action) -> bool:
    return bool(action.option_strings) and action.nargs != 0


def _value_case(names: str, action: argparse.Action) -> str | None:
    """What may follow an option of a verb."""
    patterns = " | ".join(f'"{name} {flag}"' for name in names.split() for flag in action.option_strings)
    if action.choices:
        words = shlex.quote(" ".join(str(c) for c in action.choices))
        return f'        {patterns})\n            COMPREPLY=($(compgen -W {words} -- "$cur")); return ;;'
    if action.metavar in _DIRECTORIES:
        return f'        {patterns})\n            COMPREPLY=($(compgen -d -- "$cur")); return ;;'
    if action.metavar in _FILES:
        return f"        {patterns})\n            return ;;"
    return None


def bash_completion() -> str:
    """The whole script."""
    parser = build_parser()
    verbs = [name for c in COMMANDS for name in (c.name, *c.aliases)]
    values, options = [], []
    parsers = verb_parsers()
    for command in COMMANDS:
        actions = [a for a in parsers[command.name]._actions if a.help != argparse.SUPPRESS]
        names = " ".join((command.name, *command.aliases))
        values += [case for a in actions if _takes_value(a) and (case := _value_case(names, a))]
        words = [flag for a in actions for flag in a.option_strings]
        words += [str(c) for a in actions if not a.option_strings and a.choices for c in a.choices]
        if command.name == "service":
            words += ["mds", "cs", "mount", "etcd", "all"]
        options.append(
            f'        {" | ".join(names.split())})\n            COMPREPLY=($(compgen -W {shlex.quote(" ".join(words))} -- "$cur")) ;;'
        )
    top_flags = [flag for a in parser._actions for flag in a.option_strings]
    return _TEMPLATE.format(
        global_with_value=" | ".join(flag for a in parser._actions if _takes_value(a) for flag in a.option_strings),
        verbs=shlex.quote(" ".join(verbs + top_flags)),
        values="\n".join(values),
        options="\n".join(options),
    )


if __name__ == "__main__":
    sys.stdout.write(bash_completion())
