"""Settings of a database: its URL, and its password if that is set separately."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import psycopg
from psycopg.conninfo import make_conninfo
from pydantic import AfterValidator, Field, ValidationInfo
from sqlalchemy import URL, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.util import immutabledict

from shop_common.db.address import parse
from shop_common.db.password import with_file
from shop_common.environment.process_settings import PORT_MAX
from shop_common.environment.settings import INTERNAL, SECRET, Settings

_FORMS = "must be sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME"


def _database_url(address: str, info: ValidationInfo) -> str:
    """Validate a database URL and insert the separately configured password, if there is one."""
    # X_PASSWORD and X_PASSWORD_FILE belong to X_URL. Their fields must be declared first: `info.data` has only the
    # fields before this one.
    setting = str(info.field_name).removesuffix("url") + "password"
    password = info.data.get(setting)
    if address.startswith("sqlite:///"):
        if password is not None:
            raise ValueError(f"must be a PostgreSQL URL when {setting.upper()} is set: SQLite has no passwords")
        return _sqlite(address)
    url = _postgres(address)
    if password is None:
        return url.render_as_string(hide_password=False)
    if url.username is None or url.password is not None:
        raise ValueError(f"must have a user and no password of its own when {setting.upper()} is set")
    url = url.set(password=password)
    if (path := info.data.get(f"{setting}_file")) is not None:
        url = with_file(url, path.absolute())
    return url.render_as_string(hide_password=False)


def _sqlite(address: str) -> str:
    url = parse(address)
    if "?" in address:
        raise ValueError("must have no options: a ? in the path is written as %3F, and a % as %25")
    if url.database in {None, "", ":memory:"}:
        raise ValueError("must name a file: without a file, each connection would have an empty database in memory")
    return address


def _postgres(address: str) -> URL:
    # Without a driver name SQLAlchemy would use psycopg2.
    address, known = re.subn(r"^postgres(ql)?(\+psycopg)?://", "postgresql+psycopg://", address)
    if not known:
        raise ValueError(_FORMS)
    try:
        url = make_url(address)
        arguments, options = url.get_dialect()().create_connect_args(url)
        make_conninfo(*arguments, **options)
    except psycopg.Error:
        raise ValueError("must have no option that PostgreSQL's client library does not know") from None
    except (SQLAlchemyError, ValueError):
        # Do not include the original message: it may quote the password.
        raise ValueError(_FORMS) from None
    if not 0 < (url.port or 1) <= PORT_MAX:
        raise ValueError(_FORMS)
    return url


DatabaseAddress = Annotated[str, AfterValidator(_database_url)]
"""Use this type for a field `…_url`. The class must declare the fields `…_password` and `…_password_file` before it.

Names in the URL stay percent-encoded.
"""

DatabaseUrl = Annotated[
    DatabaseAddress,
    Field(
        description="sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME, percent-encoded",
        repr=False,
        json_schema_extra=SECRET,
        validate_default=True,
    ),
]


def shown(url: str) -> str:
    """Return the URL without its password, and without its options, because an option may be a password too."""
    return make_url(url)._replace(password=None, query=immutabledict()).render_as_string()


def password_of(url_name: str) -> str:
    """Return the description of the password setting that belongs to `url_name`."""
    file = f"{url_name.removesuffix('URL')}PASSWORD_FILE"
    return f"password that goes into {url_name}, which has a user and none of its own; a changed {file} is read again"


PasswordPath = Annotated[Path | None, Field(description="path", json_schema_extra=INTERNAL)]
"""The file of a password setting. The password setting has the content that the file had at the start."""


class DatabaseSettings(Settings):
    """Settings of a process with a database of its own. The subclass declares the default of `database_url`."""

    database_password: str | None = Field(
        default=None, description=password_of("DATABASE_URL"), repr=False, json_schema_extra=SECRET
    )
    database_password_file: PasswordPath = None
    database_url: DatabaseUrl

    def facts(self) -> Iterator[tuple[str, object]]:
        yield from super().facts()
        yield "database", shown(self.database_url)
