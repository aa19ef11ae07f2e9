"""Settings of one conversation, over those of the program. Knows the tables of settings; no files, no terminals."""

import difflib
import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from rag_app.decoding import Decoding, shown
from rag_app.errors import SettingInvalid
from rag_app.halves import repaired
from rag_app.settings import Options, Settings, checked

OPTIONS, DECODING = ({f.name for f in fields(table)} for table in (Options, Decoding))


@dataclass(frozen=True, slots=True)
class Preferences:
    """How questions of one conversation are answered."""

    program: Settings
    """Of the settings file and the command line."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """Of the conversation, by name, as kept: names and values that no longer hold do not count."""
    given: Collection[str] = ()
    """Names set on the command line, which is younger than what the conversation kept."""

    def options(self) -> Options:
        """How to answer."""
        return replace(self.program.answer, **self._holding(Options, OPTIONS))

    def decoding(self) -> Decoding:
        """How the next token is chosen."""
        return replace(self.program.decoding, **self._holding(Decoding, DECODING))

    def values(self) -> dict[str, Any]:
        """Every setting by name, as it counts."""
        return {**asdict(self.options()), **asdict(self.decoding())}

    def with_text(self, name: str, text: str) -> "Preferences":
        """These with one setting changed, as a person writes it: JSON, bare text, or 'default' for the program's own.

        Raises:
            SettingInvalid: there is no such setting, or the value is none for it.
        """
        if name not in OPTIONS | DECODING:
            near = difflib.get_close_matches(name, OPTIONS | DECODING, 1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise SettingInvalid(
                f"there is no setting '{name}': {hint}there are {', '.join(sorted(OPTIONS | DECODING))}"
            )
        own = {other: value for other, value in self.own.items() if other != name}
        if text != "default":
            own |= _value(Options if name in OPTIONS else Decoding, name, text)
        return replace(self, own=own, given=set(self.given) - {name})

    def _holding(self, table: type[Any], names: Collection[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in (names & self.own.keys()) - set(self.given):
            with suppress(SettingInvalid):  # kept by another version of the program
                found |= checked(table, {name: self.own[name]})
        return found


def _value(table: type[Any], name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise SettingInvalid(f"{name} is {shown(text)}: it is nested too deeply") from error
    except ValueError:
        value = text
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, list) and all(isinstance(one, str) for one in texts):
        whole = [repaired(one) for one in texts]
        value = whole if isinstance(value, list) else whole[0]
    return checked(table, {name: value})
