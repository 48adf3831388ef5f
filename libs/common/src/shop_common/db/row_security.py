"""Row-level security of PostgreSQL: the second line of defence between tenants.

Every statement of the services joins on the tenant, on both databases. If one of them lacks the join, PostgreSQL still
hides the rows of tenants that the transaction does not serve. This works if the role of the API does not own the
tables, because an owner is exempt (docs/postgresql.md, Roles).

A transaction states its tenants together with BEGIN, so this costs no round trip. One transaction may serve the
requests of several tenants. Row-level security cannot find a missing join between those.
"""

from collections.abc import Iterable, Iterator

from shop_common.identity import tenant
from shop_common.identity.tenant import OfTenant

ALL_TENANTS = "; SET LOCAL shop.tenants = '*'"
"""Setting of a transaction that works across tenants: expiry, purges, reconciliation, and counts for metrics."""


def of(requests: Iterable[OfTenant]) -> str:
    """Return the setting of a transaction for these requests. There must be at least one."""
    return only(request.tenant for request in requests)


def only(tenants: Iterable[str]) -> str:
    """Return the setting of a transaction that may read and write rows of these tenants only.

    Raises ValueError if a name is malformed. The names become part of an SQL text, so they must be valid.
    """
    names = sorted(set(tenants))
    if not names or not all(map(tenant.is_valid, names)):
        raise ValueError("a transaction needs tenants with valid names")
    return f"; SET LOCAL shop.tenants = '{','.join(names)}'"


def protection(tables: Iterable[str], *, api: str, console: str) -> Iterator[str]:
    """Yield the statements that let the role `api` see and write only rows of the tenants of its transaction.

    `tables` are tables with a column `tenant`. The role `console` reads the rows of all tenants, and other roles see no
    rows. The owner of the tables runs the statements, and may repeat them. From then on, a transaction of `api` that
    states no tenants fails at its first statement on one of the tables.
    """
    yield _FUNCTION
    for table in tables:
        yield f"ALTER TABLE {_quoted(table)} ENABLE ROW LEVEL SECURITY"
        for policy in ("tenants", "readers"):
            yield f"DROP POLICY IF EXISTS {policy} ON {_quoted(table)}"
        yield (
            f"CREATE POLICY tenants ON {_quoted(table)} TO {_quoted(api)} "
            f"USING ({_IS_VISIBLE}) WITH CHECK ({_IS_VISIBLE})"
        )
        yield f"CREATE POLICY readers ON {_quoted(table)} FOR SELECT TO {_quoted(console)} USING (TRUE)"


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


# PostgreSQL evaluates the function once per statement, because it is in a subquery without parameters.
_IS_VISIBLE = "COALESCE(tenant = ANY ((SELECT shop_tenants())::text[]), TRUE)"

# After a transaction has set shop.tenants, the session has an empty text as its value.
_FUNCTION = """
CREATE OR REPLACE FUNCTION shop_tenants() RETURNS text[] LANGUAGE plpgsql STABLE AS $$
DECLARE
    tenants text := current_setting('shop.tenants', TRUE);
BEGIN
    IF COALESCE(tenants, '') = '' THEN
        RAISE EXCEPTION 'the transaction states no tenants in shop.tenants' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- NULL stands for all tenants.
    RETURN CASE WHEN tenants = '*' THEN NULL ELSE string_to_array(tenants, ',') END;
END
$$
"""
