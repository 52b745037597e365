"""How settings are read: from files that may include others, from the environment and from flags.

What is wrong with a source is noted, and the others are read on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from geres.errors import Invalid
from geres.model.nearest import did_you_mean
from geres.model.units import parse_cpus, parse_duration, parse_size

_NAMES_UPWARDS = ("geres.toml", ".geres.toml")
_ENVIRONMENT = re.compile(r"GERES_([A-Z]+)__([A-Z0-9_]+)")
_EXPRESSION = re.compile(r"\$\$\{|\$\{([^}]*)\}")


class _Raw(NamedTuple):
    """A value as its source has it.  Paths in it are relative to `folder`."""

    value: Any
    origin: str
    folder: Path


class Sources:
    """What files, the environment and flags say, each in its turn; a later one wins."""

    def __init__(
        self, env: Mapping[str, str], kinds: Mapping[str, Any], default: Callable[[str], Any]
    ) -> None:
        """`kinds` are the types of all settings by key, like `server.port`; `default` gives one's default."""
        self._env, self._kinds, self._default = env, kinds, default
        self._raw: dict[str, _Raw] = {}
        self.problems: list[str] = []

    def read(self, path: Path, within: tuple[Path, ...] = ()) -> None:
        """Take over a file: what it includes first, then what it says itself."""
        import tomllib  # most machines have no such file

        path = path.absolute()
        if path in within:
            self.problems.append(f"{within[-1]}: include of {path} goes in a circle")
            return
        try:
            table = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            self.problems.append(f"{path}: cannot be read: {error}")
            return
        for included in self._included(path, table.pop("include", [])):
            self.read(included, (*within, path))
        for section, values in table.items():
            if not isinstance(values, dict):
                self.problems.append(f"{path}: {section} stands outside of a section like [server]")
                continue
            for name, value in values.items():
                self.put(f"{section}.{name}", value, str(path), path.parent)

    def read_environment(self) -> None:
        """Take over variables like GERES_SERVER__PORT."""
        for name, text in self._env.items():
            if match := _ENVIRONMENT.fullmatch(name):
                self.put(f"{match[1]}.{match[2]}".lower(), text, f"environment {name}", working_folder())

    def put(self, key: str, value: Any, origin: str, folder: Path) -> None:
        """Set one setting; one that there is not is a problem.  Paths in it are relative to `folder`."""
        if key == "server.insecure":  # what release 0.1 has instead
            if value in (False, "false"):
                return
            key, value = "server.certificate", "none"
        if key in self._kinds:
            self._raw[key] = _Raw(value, origin, folder)
        else:
            self.problems.append(
                f"{key} ({origin}): there is no such setting{did_you_mean(key, self._kinds)}"
            )

    def values(self) -> tuple[dict[tuple[str, str], Any], dict[str, str]]:
        """What is set, by section and name, in the settings' types; and where each comes from, by key."""
        values: dict[tuple[str, str], Any] = {}
        origins = {}
        for key, raw in self._raw.items():
            section, _, name = key.partition(".")
            try:
                values[section, name] = _converted(key, self._kinds[key], self._resolved(raw, (key,)))
            except Invalid as error:
                self.problems.append(f"{key} ({raw.origin}): {str(error).removeprefix(key + ': ')}")
                continue
            origins[key] = raw.origin
        return values, origins

    def _included(self, path: Path, patterns: Any) -> Iterator[Path]:
        from glob import glob, has_magic  # most files include nothing

        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            found = sorted(glob(str(path.parent / str(pattern))))
            if not found and not has_magic(str(pattern)):
                self.problems.append(f"{path}: include names {pattern}, which is not there")
            yield from map(Path, found)

    def _resolved(self, raw: _Raw, within: tuple[str, ...]) -> Any:
        """The value with its expressions replaced, in tables and lists too."""
        value = raw.value
        if isinstance(value, str):
            return _EXPRESSION.sub(lambda match: self._expression(match, raw, within), value)
        if isinstance(value, list):
            return [self._resolved(_Raw(one, raw.origin, raw.folder), within) for one in value]
        if isinstance(value, dict):
            return {
                name: self._resolved(_Raw(one, raw.origin, raw.folder), within) for name, one in value.items()
            }
        return value

    def _expression(self, match: re.Match[str], raw: _Raw, within: tuple[str, ...]) -> str:
        if match[1] is None:
            return "${"
        kind, colon, rest = match[1].partition(":")
        if colon and kind == "env":
            if rest not in self._env:
                raise Invalid(f"{match[0]}: the environment has no {rest}")
            return self._env[rest]
        if colon and kind == "file":
            try:
                return (raw.folder / Path(rest).expanduser()).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise Invalid(f"{match[0]}: cannot be read: {error}") from None
        if match[1] in within:
            raise Invalid(f"{match[0]}: leads back to itself")
        if match[1] not in self._kinds:
            raise Invalid(
                f"{match[0]}: write ${{env:NAME}}, ${{file:PATH}} or a setting like ${{server.port}}"
            )
        if match[1] in self._raw:
            return _plain(self._resolved(self._raw[match[1]], (*within, match[1])))
        return _plain(self._default(match[1]))


def _converted(key: str, kind: Any, value: Any) -> Any:
    """The value in the type of its field; texts as the environment and flags have them are parsed."""
    if kind is str:
        if not isinstance(value, str):
            raise Invalid(f"{value!r} is no text; put it in quotes")
        return value
    if kind is bool:
        return _switch(value)
    if key == "client.priority":
        from geres.model.options import parse_priority  # only those who set it need the tasks' model

        return parse_priority(value, key)
    if kind is int:
        return parse_size(value, key) if key.endswith("_bytes") else _whole(value)
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise Invalid(f"{value!r} is no number")
        if key.endswith("_seconds"):
            return parse_duration(value, key)
        return parse_cpus(value, key)
    if kind == tuple[str, ...]:
        words = [word.strip() for word in value.split(",")] if isinstance(value, str) else value
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            raise Invalid(f"{value!r} is no list of texts")
        return tuple(word for word in words if word)
    pairs = _pairs(value)
    return {name: _whole(one) for name, one in pairs.items()} if kind == dict[str, int] else pairs


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("true", "yes", "on", "1"):
        return True
    if str(value).lower() in ("false", "no", "off", "0"):
        return False
    raise Invalid(f"{value!r} is neither true nor false")


def _whole(value: Any) -> int:
    if isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return int(value)
        except ValueError:
            pass
    raise Invalid(f"{value!r} is no whole number")


def _pairs(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        halves = [part.partition("=") for part in value.split(",") if part.strip()]
        if not all(equals for _, equals, _ in halves):
            raise Invalid(f"{value!r} is no list of NAME=VALUE, parted by commas")
        return {name.strip(): text.strip() for name, _, text in halves}
    if not isinstance(value, dict):
        raise Invalid(f"{value!r} is no table")
    return {
        name: one if isinstance(one, int) and not isinstance(one, bool) else _plain(one)
        for name, one in value.items()
    }


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def users_file() -> Path:
    """The settings file of this account; it need not exist."""
    from platformdirs import user_config_path  # a tenth of the start of a short command

    return user_config_path("geres") / "geres.toml"


def working_folder() -> Path:
    """The working directory; the root where it was removed under us."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path("/")


def nearest_file(cwd: Path, problems: list[str]) -> Path | None:
    """The first file from `cwd` upwards.  One of another account is left out: it could change what runs."""
    for folder in (cwd, *cwd.parents):
        for name in _NAMES_UPWARDS:
            path = folder / name
            try:
                if not path.is_file():
                    continue
            except PermissionError:  # a folder above that this account may not look into
                continue
            if path.stat().st_uid not in (0, os.getuid()):
                problems.append(f"{path}: belongs to another account; it is not read")
                return None
            return path
    return None
