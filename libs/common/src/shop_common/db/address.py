"""Addresses of databases as URLs, in which the names of hosts and databases are percent-encoded."""

from os import PathLike, fspath
from urllib.parse import unquote

from sqlalchemy import URL, make_url


def parse(address: str | URL) -> URL:
    """The address with its names decoded, as PostgreSQL's own programs read them; SQLAlchemy leaves them as they are.

    A URL is one that was parsed already, and returned as it is. It may have no text form any more: pass it on itself.
    """
    if isinstance(address, URL):
        return address
    url = make_url(address)
    return url.set(host=url.host and unquote(url.host), database=url.database and unquote(url.database))


def sqlite_url(path: str | PathLike[str]) -> str:
    """The address of an SQLite file, whatever is in its path."""
    return "sqlite:///" + fspath(path).replace("%", "%25").replace("?", "%3F")
