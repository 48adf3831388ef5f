"""Where a database is: its address, and its password apart from that where it comes from a file of its own."""

import re
from collections.abc import Iterator
from typing import Annotated

import psycopg
from psycopg.conninfo import make_conninfo
from pydantic import AfterValidator, Field, ValidationInfo
from sqlalchemy import URL, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.util import immutabledict

from shop_common.db.address import parse
from shop_common.environment.settings import PORT_MAX, SECRET, Settings

_FORMS = "must be sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME"


def _database_url(address: str, info: ValidationInfo) -> str:
    """The address as SQLAlchemy takes it, with the password of the setting beside it, if that is given."""
    # X_PASSWORD belongs to X_URL, and is declared before it: only what is validated already can be looked up.
    setting = str(info.field_name).removesuffix("url") + "password"
    password = info.data.get(setting)
    if address.startswith("sqlite:///"):
        if password is not None:
            raise ValueError(f"must be one of PostgreSQL when {setting.upper()} is set: SQLite knows no passwords")
        return _sqlite(address)
    url = _postgres(address)
    if password is None:
        return url.render_as_string(hide_password=False)
    if url.username is None or url.password is not None:
        raise ValueError(f"must have a user and no password of its own when {setting.upper()} is set")
    return url.set(password=password).render_as_string(hide_password=False)


def _sqlite(address: str) -> str:
    url = parse(address)
    if "?" in address:
        raise ValueError("must have no options: a ? in the path is written as %3F, and a % as %25")
    if url.database in {None, "", ":memory:"}:
        raise ValueError("must name a file: each connection would have an empty database of its own in memory")
    return address


def _postgres(address: str) -> URL:
    # SQLAlchemy takes a plain one for psycopg2's.
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
        # Said without what they say: that may quote the password.
        raise ValueError(_FORMS) from None
    if not 0 < (url.port or 1) <= PORT_MAX:
        raise ValueError(_FORMS)
    return url


DatabaseAddress = Annotated[str, AfterValidator(_database_url)]
"""Validated in a field named `…_url`, with the field `…_password` before it. Names in it stay percent-encoded."""

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
    """The address without its password, and without options, which may hold one as well."""
    return make_url(url)._replace(password=None, query=immutabledict()).render_as_string()


def password_of(url_name: str) -> str:
    """The description of a password's setting."""
    return f"password that goes into {url_name}, which has a user and none of its own"


class DatabaseSettings(Settings):
    """What a process with a database of its own reads. The subclass gives the default of the address."""

    database_password: str | None = Field(
        default=None, description=password_of("DATABASE_URL"), repr=False, json_schema_extra=SECRET
    )
    database_url: DatabaseUrl

    def facts(self) -> Iterator[tuple[str, object]]:
        yield from super().facts()
        yield "database", shown(self.database_url)
