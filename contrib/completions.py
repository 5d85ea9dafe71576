"""Completions for bash, zsh and fish, made from the commands and options themselves.

    python contrib/completions.py DIR       writes what belongs into DIR, a share directory

setup.py calls this when it builds a wheel. What is written runs nothing of torkit: a key costs no start.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer

ROOT = Path(__file__).parents[1]

# Where each shell looks, below a share directory.
BASH = "bash-completion/completions/torkit"
ZSH = "zsh/site-functions/_torkit"
FISH = "fish/vendor_completions.d/torkit.fish"


class Values(NamedTuple):
    """What an argument, or the value of an option, may be."""

    words: tuple[str, ...] = ()
    kind: str = ""  # "file", "dir", "command" for a command line of its own, or ""


class Option(NamedTuple):
    names: list[str]
    help: str
    metavar: str  # "" for a flag
    values: Values


class Command(NamedTuple):
    path: str  # such as "socks" or "onion keygen"; "" is torkit itself
    options: list[Option]
    subcommands: dict[str, str]  # name to what it does
    argument: Values


def read_commands() -> list[Command]:
    """Returns torkit's commands, itself first, each before those below it."""
    from torkit.cli.app import app

    return list(_read(typer.main.get_command(app), "", None))


def _read(command: Any, path: str, parent: Any) -> Iterator[Command]:
    context = typer.Context(command, parent=parent, info_name=path, **command.context_settings)
    names = command.list_commands(context) if hasattr(command, "list_commands") else []
    below = {name: command.get_command(context, name) for name in names}
    options, argument = [], Values()
    for parameter in command.get_params(context):
        if parameter.param_type_name == "option":
            takes_value = not (parameter.is_flag or parameter.count)
            metavar = (parameter.metavar or parameter.opts[0].lstrip("-").upper()) if takes_value else ""
            values = _values(parameter) if takes_value else Values()
            options.append(Option(parameter.opts, parameter.help or "", metavar, values))
        else:
            argument = _values(parameter)
    if path == "help":
        argument = Values(tuple(parent.command.list_commands(parent)))
    summaries = {name: one.get_short_help_str(limit=200) for name, one in below.items()}
    yield Command(path, options, summaries, argument)
    for name, one in below.items():
        yield from _read(one, f"{path} {name}".strip(), context)


def _values(parameter: Any) -> Values:
    metavar = parameter.metavar or ""
    words = getattr(parameter.type, "choices", ())
    if re.fullmatch(r"[A-Za-z-]+(\|[A-Za-z-]+)+", metavar):
        words = [word for word in metavar.split("|") if word.islower()]
    if re.search(r"\bCMD\b", metavar):
        return Values(kind="command")
    if metavar == "DIR" or parameter.opts == ["--dir"]:
        return Values(kind="dir")
    takes_file = isinstance(parameter.type, typer.models.TyperPath) or "FILE" in metavar
    return Values(tuple(words), "file" if takes_file else "")


# ---- bash ----------------------------------------------------------------------------------------------

BASH_HEAD = r"""# bash completion for torkit

# Sets what is known of a command: its `options`, those that take a value (`valued`), of these the ones that
# take files, directories or certain words, its `subcommands` and its `argument`.
_torkit_describe() {
    options='' valued='' files='' dirs='' words='' subcommands='' argument=''
    case $1 in
"""

BASH_TAIL = r"""    esac
}

_torkit() {
    local options valued files dirs words subcommands argument
    local command='' option='' word one i cur=${COMP_WORDS[COMP_CWORD]}
    COMPREPLY=()
    _torkit_describe ''
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if [[ -n $option ]]; then
            [[ $word == '=' ]] || option=''
        elif [[ " $valued " == *" $word "* ]]; then
            option=$word
        elif [[ $word == -?* && $word != -- ]]; then
            continue
        elif [[ " $subcommands " == *" $word "* ]]; then
            command="$command${command:+ }$word"
            _torkit_describe "$command"
        elif [[ $argument == command ]]; then
            [[ $word == -- ]] && ((i++))
            break
        fi
    done
    [[ $cur == '=' ]] && cur=''
    if [[ $argument == command && -z $option ]] && [[ $i -lt $COMP_CWORD || $cur != -* ]]; then
        if declare -F _command_offset >/dev/null; then
            _command_offset "$i"
        elif ((i == COMP_CWORD)); then
            mapfile -t COMPREPLY < <(compgen -c -- "$cur")
        else
            _torkit_files -f
        fi
    elif [[ -n $option ]]; then
        for one in $words; do
            if [[ $one == "$option="* ]]; then
                one=${one#*=}
                mapfile -t COMPREPLY < <(compgen -W "${one//|/ }" -- "$cur")
            fi
        done
        [[ " $files " == *" $option "* ]] && _torkit_files -f
        [[ " $dirs " == *" $option "* ]] && _torkit_files -d
    elif [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
    elif [[ $argument == file ]]; then
        _torkit_files -f
    else
        mapfile -t COMPREPLY < <(compgen -W "$subcommands $argument" -- "$cur")
    fi
    return 0
}

_torkit_files() {
    compopt -o filenames 2>/dev/null
    mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen "$1" -- "$cur")
}

complete -F _torkit torkit
"""


def for_bash(commands: list[Command]) -> str:
    lines = []
    for command in commands:
        valued = [option for option in command.options if option.metavar]
        known = {
            "options": [name for option in command.options for name in option.names],
            "valued": [name for option in valued for name in option.names],
            "files": [name for option in valued if option.values.kind == "file" for name in option.names],
            "dirs": [name for option in valued if option.values.kind == "dir" for name in option.names],
            "words": [
                f"{name}={'|'.join(option.values.words)}"
                for option in valued
                if option.values.words
                for name in option.names
            ],
            "subcommands": list(command.subcommands),
            "argument": [command.argument.kind or " ".join(command.argument.words)],
        }
        lines.append(f"    '{command.path}')")
        lines += [f"        {name}='{' '.join(words)}'" for name, words in known.items() if any(words)]
        lines.append("        ;;")
    return BASH_HEAD + "\n".join(lines) + "\n" + BASH_TAIL


# ---- zsh -----------------------------------------------------------------------------------------------


def for_zsh(commands: list[Command]) -> str:
    lines = ["#compdef torkit", ""]
    for command in commands:
        lines += [f"{_function(command.path)}() {{", "    local context curcontext=$curcontext state line"]
        lines += ["    typeset -A opt_args"]
        if command.subcommands:
            lines += ["    local -a subcommands=("]
            lines += [f"        {_quoted(f'{name}:{text}')}" for name, text in command.subcommands.items()]
            lines += ["    )"]
        lines += ["    _arguments -s -S -C \\"]
        lines += [f"        {spec} \\" for option in command.options for spec in _zsh_options(option)]
        if command.subcommands:
            lines += ["        '1:command:->command' '*::argument:->argument'", "    case $state in"]
            lines += ["    command) _describe -t commands command subcommands ;;", "    argument)"]
            lines += ["        case $words[1] in"]
            for name in command.subcommands:
                lines.append(f"        {name}) {_function(f'{command.path} {name}'.strip())} ;;")
            lines += ["        esac", "        ;;", "    esac"]
        else:
            lines.append(f"        {' '.join(map(_quoted, _zsh_arguments(command.argument)))}")
        lines += ["}", ""]
    return "\n".join([*lines, '_torkit "$@"', ""])


def _function(path: str) -> str:
    return "_torkit" + "".join(f"_{word}" for word in path.split())


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _zsh_text(text: str) -> str:
    return re.sub(r"([\\\[\]:])", r"\\\1", text)


def _zsh_options(option: Option) -> Iterator[str]:
    value = ""
    if option.metavar:
        value = f":{_zsh_text(option.metavar)}:{_zsh_action(option.values)}"
    for name in option.names:
        sign = "=" if option.metavar and name.startswith("--") else "+" if option.metavar else ""
        # Options may be repeated, as some have a meaning then.
        yield _quoted(f"*{name}{sign}[{_zsh_text(option.help)}]{value}")


def _zsh_action(values: Values) -> str:
    words = " ".join(values.words)
    if values.kind == "dir":
        return "_files -/"
    if values.kind == "file":
        return f'_alternative "words\\:word\\:({words})" "files\\:file\\:_files"' if words else "_files"
    return f"({words})" if words else " "


def _zsh_arguments(values: Values) -> list[str]:
    if values.kind == "command":
        return ["1: :_command_names -e", "*::arguments: _normal"]
    return [f"*:argument:{_zsh_action(values)}"]


# ---- fish ----------------------------------------------------------------------------------------------

FISH_HEAD = """# fish completion for torkit

# Prints two lines: the command that the words so far name, such as "onion keygen", and the command line that
# it is to run, if it is one that runs others.
function __torkit_parse
    set -l words (commandline -opc)
    set -l named
    set -l is_value no
    set -l rest
    for number in (seq 2 (count $words))
        set -l word $words[$number]
        if test $is_value = yes
            set is_value no
        else if contains -- $word VALUED
            set is_value yes
        else if not string match -q -- '-*' $word
            if contains -- "$named $word" COMMANDS
                set named "$named $word"
            else
                set rest $words[$number..-1]
                break
            end
        end
    end
    string trim -- "$named"
    string join ' ' -- (string escape -- $rest) (commandline -ct)
end

# Whether the words so far name this command.
function __torkit_is
    test (__torkit_parse)[1] = "$argv"
end

# What completes the command line that a command runs.
function __torkit_run
    set -l parsed (__torkit_parse)
    test -n "$parsed[2]"; and complete "--do-complete=$parsed[2]"
end

complete -c torkit -f
"""


def for_fish(commands: list[Command]) -> str:
    valued = {
        name for command in commands for option in command.options if option.metavar for name in option.names
    }
    flags = {
        name
        for command in commands
        for option in command.options
        if not option.metavar
        for name in option.names
    }
    paths = [_fish(f" {command.path}") for command in commands if command.path]
    head = FISH_HEAD.replace("VALUED", " ".join(sorted(valued - flags))).replace("COMMANDS", " ".join(paths))
    lines = []
    for command in commands:
        start = f"complete -c torkit -n {_fish(f'__torkit_is {command.path}'.strip())}"
        for name, text in command.subcommands.items():
            lines.append(f"{start} -a {name} -d {_fish(text)}")
        lines += [f"{start} {_fish_option(option)}" for option in command.options]
        if command.argument.kind == "command":
            lines.append(f"{start} -x -a '(__torkit_run)'")
        elif command.argument.kind == "file":
            lines.append(f"{start} -F")
        elif command.argument.words:
            lines.append(f"{start} -a {_fish(' '.join(command.argument.words))}")
    return head + "\n".join(lines) + "\n"


def _fish(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _fish_option(option: Option) -> str:
    parts = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names]
    if option.metavar:
        parts.append("-r -F" if option.values.kind == "file" else "-x")
    if option.values.words:
        parts.append(f"-a {_fish(' '.join(option.values.words))}")
    if option.values.kind == "dir":
        parts.append("-a '(__fish_complete_directories)'")
    return " ".join([*parts, "-d", _fish(option.help)])


# ---- all of them ---------------------------------------------------------------------------------------

WRITERS = {BASH: for_bash, ZSH: for_zsh, FISH: for_fish}


def write_completions(share: Path) -> list[Path]:
    """Write a file for each shell below `share`; returns the files."""
    commands = read_commands()
    written = []
    for place, write in WRITERS.items():
        path = share / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(write(commands), encoding="utf-8")
        written.append(path)
    return written


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    for path in write_completions(Path(sys.argv[1])):
        print(path)
