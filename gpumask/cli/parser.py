"""The command line: commands, and what is said about words that aren't options."""

import argparse
import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from gpumask import __version__
from gpumask.cli.config import read_config
from gpumask.cli.options import LEVELS, add_cohort, add_extract
from gpumask.cli.values import check_file


class _Given(argparse.Action):
    """Keep what an option is given. Lists may be given in parts; a second single value would replace the first."""

    def __init__(self, *args, **keywords):
        super().__init__(*args, **keywords)
        self._is_given = False

    def __call__(self, parser, namespace, values, option_string=None):
        if self.nargs is None and isinstance(values, list):  # argparse makes an empty one of --option=--
            raise argparse.ArgumentError(self, "expected one argument")
        if self._is_given and option_string:
            if self.nargs is None:
                raise argparse.ArgumentError(self, "given twice, expected once")
            values = [*getattr(namespace, self.dest), *values]
        self._is_given = True
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """A parser that suggests an option for an unknown one; each parses once."""

    def __init__(self, *args, **keywords):
        super().__init__(*args, **keywords)
        for action in (None, "store"):
            self.register("action", action, _Given)
        self.add_argument("--version", action="version", version=f"gpumask {__version__}")
        self.commands = {}

    def check_options(self, words: Sequence[str]) -> None:
        """Exit if a word looks like an option and isn't one; argparse would first miss required ones."""
        for word in words:
            if word == "--":
                return
            name = word.partition("=")[0]
            if (
                not re.match("--[a-zA-Z]|-[a-zA-Z]{2}", name)
                or name in self._option_string_actions
                or self._is_short(name)
            ):
                continue
            near = self._nearest(f"--{name.lstrip('-')}".lower())
            self.error(f"unrecognized arguments: {name}" + (f". Did you mean {near}?" if near else ""))

    @property
    def options(self) -> dict[str, argparse.Action]:
        """The options by name, without dashes in front, that may stand in a file."""
        named = [(action.option_strings[-1][2:], action) for action in self._actions if action.option_strings]
        return {name: action for name, action in named if name not in ("help", "version", "config")}

    def runs_first(self, words: list[str]) -> list[str]:
        """The words of ``extract`` with the runs of "--atlas IMAGE RUN ..." in front: such options have several values.

        The same for --seeds, --lut and "--confounds auto"; only if there are no other runs.
        """
        surplus: list[int] = []
        k = 0
        while k < len(words):
            action = self._option_string_actions.get(words[k])
            if action is None and not words[k].startswith("-"):
                return words  # a run
            stop = k + 1
            if action is not None and action.nargs == "+":
                while stop < len(words) and not words[stop].startswith("-"):
                    stop += 1
            elif action is not None and action.nargs is None:
                stop += 1
            if words[k] in ("--atlas", "--seeds", "--lut", "--label-map") or words[k : k + 2] == [
                "--confounds",
                "auto",
            ]:
                surplus += range(k + 2, stop)
            k = stop
        return [*(words[i] for i in surplus), *(word for i, word in enumerate(words) if i not in surplus)]

    def _is_short(self, name):
        return not name.startswith("--") and name[:2] in self._option_string_actions

    def _nearest(self, name):
        options = [option for option in self._option_string_actions if option.startswith("--")]
        longer = [option for option in options if option.startswith(name)]
        containing = [option for option in options if name.strip("-") in option]
        return next(iter([*longer, *get_close_matches(name, options, n=1), *containing]), None)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse the words of a command line; SystemExit 2 if they can't be."""
    parser = build_parser()
    # BIDS Apps accept both spellings of options.
    words = [re.sub("^--[a-zA-Z_]+", lambda match: match[0].replace("_", "-"), word) for word in map(str, words)]
    command = parser.commands.get(words[0]) if words else None
    if command is not None:
        command.check_options(words[1:])
        if (path := _config_of(words[1:])) is not None:
            try:
                check_file("--config", path)
                command.set_defaults(**read_config(path, command.options))
            except (OSError, ValueError) as error:
                command.exit(2, f"{command.prog}: error: {error}\n")
        words = [words[0], *(_level_first if words[0] == "cohort" else command.runs_first)(words[1:])]
    return parser.parse_args(words)


def _config_of(words):
    """The file of --config, which is read before the other options."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--config", type=Path)
    try:
        return first.parse_known_args(words)[0].config
    except argparse.ArgumentError:  # which the whole parser reports
        return None


def _level_first(words):
    """The words of ``cohort`` with FMRIPREP_DIR OUT_DIR LEVEL in front, where no option takes them for its own."""
    if len(words) > 2 and not any(word.startswith("-") for word in words[:2]):
        level = 2
        while level < len(words) and (words[level] not in LEVELS or (level > 2 and words[level - 1].startswith("-"))):
            level += 1
        return [*words[:2], *words[level : level + 1], *words[2:level], *words[level + 1 :]]
    for k in range(2, len(words)):
        if words[k] in LEVELS and not any(word.startswith("-") for word in words[k - 2 : k]):
            return [*words[k - 2 : k + 1], *words[: k - 2], *words[k + 1 :]]
    return words


def build_parser() -> Parser:
    """Parser of the command line; ``command`` is the command's name."""
    parser = Parser("gpumask", description="Region time series from fMRI runs.", allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    parser.commands = commands.choices
    add_extract(commands)
    add_cohort(commands)
    demo = commands.add_parser(
        "demo",
        help="extract a small real run that comes with nibabel, and show the result",
        description="Extract a small real run that comes with nibabel, with an atlas cut from it; show the result.",
    )
    demo.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("gpumask-demo"), help="folder to write to (gpumask-demo)"
    )
    info = commands.add_parser("info", help="show versions, devices, and why a GPU can't be used")
    info.add_argument(
        "--denoise", action="store_true", help="list the presets of --denoise instead, with what each removes"
    )
    return parser


def options_of(command: str) -> dict[str, argparse.Action]:
    """The options of a command by name, without dashes in front, that may stand in a file."""
    return build_parser().commands[command].options
