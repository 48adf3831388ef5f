"""Rows of a CSV file become changes of stock, and each error names its line."""

from pathlib import Path

import pytest

from shopctl.stock.stock_file import Row, StockFile
from shopctl.terminal.failures import CommandFailed

HEADER = "product_id,location,received,adjusted,counted,moved,to_location,version,reason,occurred_at\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "stock.csv"


def rows(file: Path, content: str | bytes) -> list[Row]:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(StockFile(file).rows())


def test_each_kind_of_change_is_read(file: Path) -> None:
    content = (
        '1,A,5,,,,,,,\n2,B,,-3,,,,7,damaged,\n3,C,,,0,,,,,2024-01-15T10:30:00+01:00\n4,D,,,,2,E,,"wrong, shelf",\n'
    )

    received, adjusted, counted, moved = (row.change for row in rows(file, HEADER + content))

    assert received is not None
    assert (received.product_id, received.location, received.received) == (1, "A", 5)
    assert not received.HasField("version")
    assert adjusted is not None
    assert (adjusted.adjusted, adjusted.version, adjusted.reason) == (-3, 7, "damaged")
    assert counted is not None
    assert counted.WhichOneof("change") == "counted"
    assert counted.occurred_at.ToJsonString() == "2024-01-15T09:30:00Z"
    assert moved is not None
    assert (moved.move.to_location, moved.move.quantity, moved.reason) == ("E", 2, "wrong, shelf")


def test_what_spreadsheets_write_is_understood(file: Path) -> None:
    content = (
        b"\xef\xbb\xbf\r\n"
        b'Product_ID , LOCATION,"counted",reason,,\r\n'
        b'1,A,5,"two\r\nlines",,\r\n'
        b"\r\n"
        b",,,,,\r\n"
        b" 2 ,A,6\r\n"
    )

    found = rows(file, content)

    assert [(row.line, row.error) for row in found] == [(3, ""), (7, "")]
    assert [row.change.counted for row in found if row.change] == [5, 6]


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ("1,A,,,,,,,,", "exactly one of received, adjusted, counted, moved, withheld must have a value"),
        ("1,A,1,,2,,,,,", "exactly one of"),
        ("1,,1,,,,,,,", "location is missing"),
        (",A,1,,,,,,,", "product_id is missing"),
        ('1,A,"1,000",,,,,,,', "received must be a whole number without separators, not '1,000'"),
        ("1.0,A,1,,,,,,,", "product_id must be a whole number"),
        ("1,A,9999999999999999999,,,,,,,", "received must be a whole number"),
        ("1,A,\u0664,,,,,,,", "received must be a whole number"),
        ("1,A,,,,2,,,,", "moved and to_location must be set together"),
        ("1,A,2,,,,B,,,", "moved and to_location must be set together"),
        ("1,A,2,,,,,,,15.01.2024", "occurred_at must be a time with its zone"),
        ("1,A,2,,,,,,,2024-01-15T10:30:00", "occurred_at must be a time with its zone"),
        ("1,A,2,,,,,,,0001-01-01T00:00+14:00", "the year of a time must be 1 to 9999 in UTC"),
        ("1,A,2,,,,,,,,more", "the row has more values than the header has columns: 'more'"),
    ],
)
def test_a_wrong_row_is_named_and_the_others_are_read(file: Path, row: str, error: str) -> None:
    good, wrong, last = rows(file, f"{HEADER}1,A,1,,,,,,,\n{row}\n2,A,1,,,,,,,\n")

    assert good.change is not None
    assert last.change is not None
    assert (wrong.line, wrong.change) == (3, None)
    assert error in wrong.error


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", "is empty; expected the columns product_id, location"),
        ("product_id;location;received\n1;A;2\n", "line 1: the columns are separated by semicolons"),
        ("product_id\tlocation\treceived\n", "line 1: the columns are separated by tabs"),
        ("product,location,received\n", "'product' is not a column; product_id is missing"),
        ("product_id,location,quantity\n", "one of received, adjusted, counted, moved, withheld is missing"),
        ("product_id,location,received,received\n", "received is there twice"),
        ("1,A,5\n", "'1' is not a column"),
        ('product_id,location,received\n1,A,"5\n2,A,3\n', "line 2: this is not CSV"),
        ("product_id,location,received,reason\n1,A,5,caf\u00e9\n".encode("latin-1"), "not in UTF-8"),
    ],
)
def test_a_wrong_file_is_refused_with_what_was_expected(file: Path, content: str | bytes, error: str) -> None:
    with pytest.raises(CommandFailed) as refused:
        rows(file, content)

    assert error in str(refused.value)
    assert str(file) in str(refused.value)


def test_a_missing_file_is_named(file: Path) -> None:
    with pytest.raises(CommandFailed, match="is not a file"):
        StockFile(file)
