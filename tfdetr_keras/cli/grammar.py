"""The command line's parser: it suggests corrections of mistyped words, and names settings by the command's options."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from tfdetr_keras.names.spelling import did_you_mean

_CHOICE = re.compile(r"invalid choice: '?(.*?)'? \(choose from (.*)\)$", re.DOTALL)
_UNKNOWN = re.compile(r"unrecognized arguments: (--[\w-]+)")
# What errors of the Python interface call something else than the option it comes from.
_OTHER_NAMES = {"frozen": "freeze"}


class Parser(argparse.ArgumentParser):
    """argparse's parser; every command's options know their parser, as `parser`."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.set_defaults(parser=self)

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, with the nearest existing name, and exit with 2."""
        if found := _CHOICE.search(message):
            message += did_you_mean(found[1], [name.strip("' ") for name in found[2].split(",")])
        elif found := _UNKNOWN.search(message):
            message += did_you_mean(found[1], self._all_options())
        super().error(message)

    def in_options(self, message: str) -> str:
        """Return an error of the Python interface with its arguments replaced by the command's options.

        Names with an underscore are replaced everywhere; the others, which may be ordinary words of the sentence, only
        where a message states their value: "epochs must be …", "frozen: …", "size=…".

        Args:
            message: such as "max_boxes must be at least 1, not 0".
        """
        options = {action.dest: _long(action) for action in self._actions if _long(action)}
        options |= {other: options[name] for other, name in _OTHER_NAMES.items() if name in options}
        for name, option in options.items():
            if "_" in name:
                message = re.sub(rf"(?<![\w./\\-]){name}(?![\w/\\(-]|\.\w)", option, message)
            else:
                message = re.sub(rf"(^|(?<=; )|(?<= and )){name}(?= must |: |=)", option, message)
        return message

    def _all_options(self) -> list[str]:
        parsers = [self]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
        return [option for parser in parsers for option in parser._option_string_actions if option.startswith("--")]


def _long(action: argparse.Action) -> str:
    return next((option for option in action.option_strings if option.startswith("--")), "")
