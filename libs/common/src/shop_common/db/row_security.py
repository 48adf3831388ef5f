"""Row-level security of PostgreSQL: the second line of defence between tenants.

Every statement of the services joins on the tenant, on both databases. If one of them lacks the join, PostgreSQL still
hides the rows of tenants that the transaction does not serve. This works if the role of the API does not own the
tables, because an owner is exempt (docs/postgresql.md, Roles).

A transaction states its tenants together with BEGIN, so this costs no round trip. One transaction may serve the
requests of several tenants. Row-level security cannot find a missing join between those.
"""

from collections.abc import Iterable

from alembic import op

from shop_common.identity import tenant

ALL_TENANTS = "; SET LOCAL shop.tenants = '*'"
"""Setting of a transaction that works across tenants: expiry, purges, reconciliation, and counts for metrics."""


def only(tenants: Iterable[str]) -> str:
    """Return the setting of a transaction that may read and write rows of these tenants only.

    Raises ValueError if a name is malformed. The names become part of an SQL text, so they must be valid.
    """
    names = sorted(set(tenants))
    if not names or not all(map(tenant.is_valid, names)):
        raise ValueError("a transaction needs tenants with valid names")
    return f"; SET LOCAL shop.tenants = '{','.join(names)}'"


def protect(*tables: str) -> None:
    """In a migration: let transactions see and write only rows of their own tenants in these tables.

    A transaction that states no tenants fails at the first statement on such a table. Does nothing on SQLite.
    """
    if op.get_context().dialect.name != "postgresql":
        return
    op.execute(_FUNCTION)
    for table in tables:
        op.execute(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
        op.execute(f"CREATE POLICY tenants ON {table} USING ({_IS_VISIBLE}) WITH CHECK ({_IS_VISIBLE})")


# PostgreSQL evaluates the function once per statement, because it is in a subquery without parameters.
_IS_VISIBLE = "COALESCE(tenant = ANY ((SELECT shop_tenants())::text[]), TRUE)"

# After a transaction that has set shop.tenants, the session has an empty value of it.
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
