"""The baseline: the same service as one would write it first, on the same tables.

gRPC with a thread a call, the SQLAlchemy ORM, and one transaction a call, which locks its items with SELECT … FOR
UPDATE and writes reservation, allocations and outbox row. It is correct, and leaves out what costs our service more:
validation, idempotency, expiry.
"""
