"""Typed, immutable settings, read from the environment once. All invalid settings are reported at the same time.

The variable NAME contains the value of the setting NAME. Or NAME_FILE contains the path of a file with the value, for
example a secret that is mounted into a container. The settings themselves are in `process_settings` and in the packages
that use them.
"""

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import JsonValue, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from shop_common.environment.files import FileUnusable, value_in

# SECRET marks a setting whose value is never shown. INTERNAL marks a setting that is not for users; --help omits it.
SECRET: dict[str, JsonValue] = {"secret": True}
INTERNAL: dict[str, JsonValue] = {"internal": True}

WRONG_SETTINGS_EXIT_CODE = 2

_FILE_FAULT = "settings_file"
_HIDDEN = "(hidden)"


class Settings(BaseSettings):
    """The root of all settings classes. Instances are immutable. Names of variables are case-insensitive."""

    # docker compose passes an unset variable as an empty one, so an empty variable also means the default.
    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_ignore_empty=True, case_sensitive=False)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _EnvironmentAndFiles(settings_cls)

    @field_validator("*", mode="before")
    @classmethod
    def _was_read(cls, value: object) -> object:
        if isinstance(value, _Unreadable):
            raise PydanticCustomError(_FILE_FAULT, "{why}", {"why": value.why})
        return value

    def contradictions(self) -> Iterator[str]:
        """Yield an error message for each invalid combination of valid values. Subclasses add their own."""
        yield from ()

    def start_faults(self) -> Iterator[str]:
        """Yield an error message for each reason not to serve with these settings, such as an unusable file.

        Commands that do not serve, such as `migrate`, do not call this method. Subclasses add their own reasons.
        """
        yield from ()

    def facts(self) -> Iterator[tuple[str, object]]:
        """Yield the fields that a process logs when it starts to serve, without secrets. Subclasses add their own."""
        yield from ()


class _Unreadable:
    """Replaces a value that could not be read, until validation reports it."""

    def __init__(self, why: str) -> None:
        self.why = why


class _FileContent(str):
    """A value from a file. Errors do not quote the value: the path may be wrong, and the file may contain a secret."""

    __slots__ = ()


class _EnvironmentAndFiles(EnvSettingsSource):
    """Reads the variable NAME, or the file whose path NAME_FILE contains."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        value, key, is_complex = super().get_field_value(field, field_name)
        path = self.env_vars.get(f"{field_name}_file")
        if path is not None:
            both = f"must not be set together with {field_name.upper()}"
            value = _content(Path(path)) if value is None else _Unreadable(both)
        return value, key, is_complex


def _content(path: Path) -> _FileContent | _Unreadable:
    try:
        return _FileContent(value_in(path))
    except FileUnusable as error:
        return _Unreadable(str(error))


_Settings = TypeVar("_Settings", bound=Settings)


class WrongSettings(Exception):
    """Settings are invalid. Each error is one line that begins with the name of a setting."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("these settings are wrong: " + "; ".join(errors))
        self.errors = errors


def load(settings: type[_Settings]) -> _Settings:
    """Read the settings. If some are invalid, print one line for each and exit with code 2."""
    try:
        return read(settings)
    except WrongSettings as error:
        raise refusal(error.errors) from None


def read(settings: type[_Settings]) -> _Settings:
    """Read the settings. Raises WrongSettings, which lists all that are invalid."""
    try:
        loaded = settings()
    except ValidationError as error:
        raise WrongSettings(_errors(settings, error)) from None
    # Combinations can be checked only if each value is valid.
    if contradictions := list(loaded.contradictions()):
        raise WrongSettings(contradictions)
    return loaded


def help_text(settings: type[Settings]) -> str:
    """Return the description of each setting with its default, for `--help`."""
    entries = []
    for name, field in sorted(settings.model_fields.items()):
        if _marked(field, INTERNAL):
            continue
        description = textwrap.wrap(field.description or "", 72)
        entries.append("\n".join([f"  {name.upper()}{_default(field)}", *(f"      {line}" for line in description)]))
    title = (
        "settings, read from environment variables: NAME, or NAME_FILE with the path of a file that contains the value"
    )
    return "\n".join([*textwrap.wrap(title, 76), *entries])


def shown(settings: Settings) -> dict[str, str]:
    """Return the values in force for people, by the names of the settings. An unset setting is empty.

    The value of a secret is hidden, and so are the user, the password and the options in every URL.
    """
    found = {}
    for name, field in sorted(type(settings).model_fields.items()):
        if _marked(field, INTERNAL):
            continue
        value = getattr(settings, name)
        if value is None or value == "":
            found[name.upper()] = ""
        elif _marked(field, SECRET):
            found[name.upper()] = _HIDDEN
        else:
            found[name.upper()] = _without_credentials(str(value).lower() if isinstance(value, bool) else str(value))
    return found


def _without_credentials(value: str) -> str:
    if "://" not in value:
        return value
    # Up to the last @ and from the first ?, since a password that is not encoded may contain any character.
    return re.sub(r"\?.*", f"?{_HIDDEN}", re.sub(r"://.*@", f"://{_HIDDEN}@", value, flags=re.DOTALL), flags=re.DOTALL)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return " (required)"
    if field.default is None:
        return ""
    return f" = {str(field.default).lower() if isinstance(field.default, bool) else field.default}"


def refusal(errors: list[str]) -> SystemExit:
    """Print the errors, and return the exception that exits with code 2."""
    lines = ["These settings are wrong; correct them in the environment, or see --help:", *errors]
    sys.stderr.write("\n  ".join(lines) + "\n")
    return SystemExit(WRONG_SETTINGS_EXIT_CODE)


def _errors(settings: type[Settings], error: ValidationError) -> list[str]:
    lines = []
    for fault in error.errors():
        name = str(fault["loc"][0])
        if fault["type"] == "missing":
            lines.append(f"{name.upper()}: is required and not set")
        elif fault["type"] == _FILE_FAULT:
            lines.append(f"{name.upper()}_FILE: {fault['msg']}")
        else:
            secret = _marked(settings.model_fields[name], SECRET) or isinstance(fault["input"], _FileContent)
            value = " (value not shown)" if secret else f", but is {fault['input']!r}"
            lines.append(f"{name.upper()}: {_rule(fault['msg'])}{value}")
    return lines


def _rule(message: str) -> str:
    """Reword a message of pydantic: `Input should be a valid integer, unable to …` to `must be a valid integer`."""
    message = message.removeprefix("Value error, ").partition(", unable to ")[0]
    return message.replace("Input should", "must", 1)


def _marked(field: FieldInfo, mark: dict[str, JsonValue]) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and all(extra.get(key) == value for key, value in mark.items())
