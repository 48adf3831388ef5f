"""Parses and builds database URLs. In them, the names of hosts and databases are percent-encoded."""

from os import PathLike, fspath
from urllib.parse import unquote

from sqlalchemy import URL, make_url


def parse(address: str | URL) -> URL:
    """Parse a database URL and decode its names. PostgreSQL's programs decode them too, but SQLAlchemy does not.

    Returns a URL object unchanged, because it was parsed before. A decoded URL may have no valid text form, so pass on
    the object.
    """
    if isinstance(address, URL):
        return address
    url = make_url(address)
    return url.set(host=url.host and unquote(url.host), database=url.database and unquote(url.database))


def sqlite_url(path: str | PathLike[str]) -> str:
    """Return the URL of an SQLite file. The path may contain any character."""
    return "sqlite:///" + fspath(path).replace("%", "%25").replace("?", "%3F")
