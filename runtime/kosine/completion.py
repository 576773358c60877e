"""Print a script that completes kosine's verbs and options in a shell.

    source <(kosine completion bash)              # in ~/.bashrc; zsh in ~/.zshrc
    kosine completion fish | source               # in ~/.config/fish/config.fish

The script is made from the verbs as they are here, and knows nothing of later ones: make it anew
after an upgrade.
"""

from __future__ import annotations

import argparse
import sys
from typing import NamedTuple

from kosine import cli
from kosine.backends.registry import BACKENDS, DTYPES
from kosine.errors import MissingExtra
from kosine.quantization import PRECISIONS

__all__ = ["SHELLS", "add_arguments", "run"]

SHELLS = ("bash", "zsh", "fish")
VALUES = {
    "--backend": ("auto", *BACKENDS),
    "--dtype": ("auto", *DTYPES),
    "--device": ("auto", "cpu", "cuda"),
    "--precision": PRECISIONS,
}


class Verb(NamedTuple):
    """A verb, its line of help, its options, and the values of those that take a few."""

    name: str
    text: str
    options: list[str]
    values: dict[str, tuple[str, ...]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS)


def run(args: argparse.Namespace) -> int:
    sys.stdout.write({"bash": _bash, "zsh": _zsh, "fish": _fish}[args.shell](_verbs()))
    return 0


def _verbs() -> list[Verb]:
    found = []
    for name, (module, text) in cli.VERBS.items():
        parser = argparse.ArgumentParser()
        try:
            cli.import_verb(name, module).add_arguments(parser)
        except MissingExtra:  # its options are to be had once it is installed
            parser = argparse.ArgumentParser(add_help=False)
        options: list[str] = []
        values: dict[str, tuple[str, ...]] = {}
        for action in parser._actions:
            options += action.option_strings
            for option in action.option_strings or [""]:
                few = action.choices or VALUES.get(option)
                if few:
                    values[option] = tuple(map(str, few))
        found.append(Verb(name, text, options, values))
    return found


def _bash(verbs: list[Verb]) -> str:
    values = [
        f"    '{verb.name} {option}') words='{' '.join(few)}' ;;\n"
        for verb in verbs
        for option, few in verb.values.items()
        if option
    ]
    options = [f"      {verb.name}) words='{' '.join(verb.options)}' ;;\n" for verb in verbs]
    first = [
        f"      {verb.name}) words='{' '.join(verb.values[''])}' ;;\n"
        for verb in verbs
        if "" in verb.values
    ]
    return (
        "_kosine() {\n"
        '  local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=\n'
        '  local verb="${COMP_WORDS[1]}"\n'
        '  case "$verb $before" in\n'
        f"{''.join(values)}"
        "  esac\n"
        '  if [ "$COMP_CWORD" -eq 1 ]; then\n'
        f"    words='{' '.join(verb.name for verb in verbs)} --help --version'\n"
        '  elif [ -z "$words" ] && [ "${word#-}" != "$word" ]; then\n'
        '    case "$verb" in\n'
        f"{''.join(options)}"
        "    esac\n"
        '  elif [ -z "$words" ]; then\n'
        '    case "$verb" in\n'
        f"{''.join(first)}"
        "    esac\n"
        "  fi\n"
        '  if [ -n "$words" ]; then\n'
        '    COMPREPLY=($(compgen -W "$words" -- "$word"))\n'
        "  else\n"
        '    COMPREPLY=($(compgen -f -- "$word"))\n'
        "  fi\n"
        "}\n"
        "complete -o filenames -F _kosine kosine\n"
    )


def _zsh(verbs: list[Verb]) -> str:
    # zsh runs bash's completions with arrays from 0, as bash has them.
    return (
        "autoload -Uz compinit bashcompinit\n"
        "(( $+functions[compdef] )) || compinit\n"
        "bashcompinit\n" + _bash(verbs)
    )


def _fish(verbs: list[Verb]) -> str:
    lines = []
    for verb in verbs:
        text = verb.text.replace("\\", r"\\").replace("'", r"\'")
        lines.append(f"complete -c kosine -f -n __fish_use_subcommand -a {verb.name} -d '{text}'")
        here = f"complete -c kosine -n '__fish_seen_subcommand_from {verb.name}'"
        if "" in verb.values:
            lines.append(f"{here} -f -a '{' '.join(verb.values[''])}'")
        for option in verb.options:
            kind = "-l" if option.startswith("--") else "-s"
            few = verb.values.get(option)
            more = f" -x -a '{' '.join(few)}'" if few else ""
            lines.append(f"{here} {kind} {option.lstrip('-')}{more}")
    return "\n".join(lines) + "\n"
