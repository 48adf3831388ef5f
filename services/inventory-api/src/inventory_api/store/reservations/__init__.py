"""All SQL on the tables stock_reservations and reservation_allocations.

rows.py      reads reservations by id, with their allocations, and inserts new ones
locks.py     locks reservations together with their items
changes.py   the UPDATE statements that change the state of a reservation, or set it aside
by_order.py  reads the reservations of orders by state
due.py       finds held reservations that are past their expiry
pages.py     reads the pages of ListReservations
ended.py     finds and deletes reservations that ended long ago
counts.py    counts held reservations, and reservations that were set aside
"""
