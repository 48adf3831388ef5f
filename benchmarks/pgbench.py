"""pgbench, which comes with PostgreSQL: what the database alone does with the statements of one reservation."""

import re
import resource
import shutil
import subprocess
import tempfile
from pathlib import Path

from sqlalchemy.engine import make_url

from benchmarks import cpu, stock
from benchmarks.generator import Outcome
from benchmarks.http2 import LoadError
from benchmarks.scenarios import HOT_PRODUCT, PRODUCTS, RESERVE_HOT, RESERVE_SPREAD, Scenario
from benchmarks.subjects import prepare_inventory
from devstack.postgres import PostgresServer

NAME = "pgbench"

# One reservation as our services make it, without the batch: one statement a step, one transaction a reservation.
_TRANSACTION = """
\\set product {product}
BEGIN;
SELECT id AS item FROM inventory_items
    WHERE product_id = :product AND quantity - reserved_quantity >= 1 ORDER BY id FOR UPDATE \\gset
SELECT gen_random_uuid() AS reservation, gen_random_uuid() AS event \\gset
UPDATE inventory_items SET reserved_quantity = reserved_quantity + 1, updated_at = clock_timestamp() WHERE id = :item;
INSERT INTO stock_reservations (id, product_id, quantity, order_id, state, created_at, expires_at)
    VALUES (:reservation, :product, 1, 'order-' || :client_id, 'HELD', clock_timestamp(),
            clock_timestamp() + interval '30 minutes');
"""
