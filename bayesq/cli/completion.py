"""``bayesq completion``: a script that completes commands, options and their choices in a shell."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from bayesq.cli import common

SHELLS = ["bash", "zsh", "fish"]

_BASH = """\
_bayesq() {{
    local word path= words= option=${{COMP_WORDS[COMP_CWORD-1]}} current=${{COMP_WORDS[COMP_CWORD]}}
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$path $word" in
            {paths}) path="$path $word" ;;
        esac
    done
    case "$path|$option" in
{values}
        *) case "$path|$current" in
{options}
{commands}
        esac ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _bayesq bayesq
"""
_ZSH = """\
(( $+functions[compdef] )) || { autoload -U +X compinit && compinit }
autoload -U +X bashcompinit && bashcompinit
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    parser = subparsers.add_parser(
        "completion",
        help="print a script that completes commands in a shell",
        description="Prints a script that completes commands and options. To have it in every new shell: "
        "bayesq completion bash > ~/.local/share/bash-completion/completions/bayesq; "
        'for zsh, eval "$(bayesq completion zsh)" in ~/.zshrc; '
        "bayesq completion fish > ~/.config/fish/completions/bayesq.fish.",
    )
    parser.add_argument("shell", choices=SHELLS)
    common.add_talk_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from bayesq.cli import build_parser

    commands = list(_walk(build_parser(), ()))
    print({"bash": bash, "zsh": lambda them: _ZSH + bash(them), "fish": fish}[args.shell](commands), end="")
    return 0


@dataclass(frozen=True)
class Command:
    """What can follow ``bayesq`` and some words: further commands with their help, and options."""

    path: tuple[str, ...]
    commands: dict[str, str]
    options: list[argparse.Action]

    @property
    def choices(self) -> list[argparse.Action]:
        """The options that take one of a few words."""
        return [option for option in self.options if option.choices]


def _walk(parser: argparse.ArgumentParser, path: tuple[str, ...]) -> Iterator[Command]:
    options = [action for action in parser._actions if action.option_strings]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield Command(path, {it.dest: it.help or "" for it in action._choices_actions}, options)
            for name, child in action.choices.items():
                yield from _walk(child, (*path, name))
            return
    words = [str(word) for action in parser._actions if not action.option_strings for word in action.choices or ()]
    yield Command(path, dict.fromkeys(words, ""), options)


def bash(commands: list[Command]) -> str:
    """The script for bash; file names are left to bash itself."""
    key = {command.path: "".join(f" {word}" for word in command.path) for command in commands}

    def case(pattern: str, words: list[str]) -> str:
        return f"        {pattern}) words='{' '.join(words)}' ;;"

    return _BASH.format(
        paths="|".join(f'"{path}"' for path in key.values() if path),
        values="\n".join(
            case(
                "|".join(f'"{key[c.path]}|{name}"' for name in o.option_strings),
                [str(word) for word in o.choices or ()],
            )
            for c in commands
            for o in c.choices
        ),
        options="\n".join(
            case(f'"{key[c.path]}|-"*', [name for o in c.options for name in o.option_strings]) for c in commands
        ),
        commands="\n".join(case(f'"{key[c.path]}|"*', list(c.commands)) for c in commands if c.commands),
    )


def fish(commands: list[Command]) -> str:
    """The script for fish, with the help beside each word."""
    lines = []
    for c in commands:
        tests = [f"__fish_seen_subcommand_from {word}" for word in c.path]
        if c.commands:
            tests.append(f"not __fish_seen_subcommand_from {' '.join(c.commands)}")
        start = f"complete -c bayesq -n {_quoted('; and '.join(tests))}" if tests else "complete -c bayesq"
        lines += [f"{start} -f -a {word} -d {_quoted(about)}" for word, about in c.commands.items()]
        for option in c.options:
            names = [f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" for n in option.option_strings]
            values = f" -x -a {_quoted(' '.join(map(str, option.choices)))}" if option.choices else ""
            values = values or (" -r" if option.nargs != 0 else "")
            lines.append(f"{start} {' '.join(names)}{values} -d {_quoted(_about(option))}")
    return "\n".join(lines) + "\n"


def _about(option: argparse.Action) -> str:
    return (option.help or "") % {"default": option.default, "prog": "bayesq", "metavar": option.metavar}


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
