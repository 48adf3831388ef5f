"""A queue in which callers take turns, so that the requests of one caller cannot delay those of the others.

Each caller's requests wait in a lane of their own, in arrival order. The lanes take turns by deficit round robin
(Shreedhar and Varghese, 1996): each turn earns a lane one unit of weight, and each request that is taken costs its
weight. So the lane of a heavy request misses turns until it has earned that weight. While only one caller has waiting
requests, its lane always has the turn, and nothing is earned or charged.
"""

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

from shop_common.identity.caller import Caller

_T = TypeVar("_T")

SHARED_SECONDS = 1.0
"""Something counts as shared for this time after several callers have used it.

A caller that waits for each response before its next call uses nothing in between. Without this time, another caller
would fill a whole batch in each such pause, and so delay each call of the first caller by a whole batch.
"""

CALLER_SHARE = 4
"""While a queue is shared, one caller has at most this part of it: a quarter."""

Sharer = Hashable
"""Identifies one of the callers between whom a queue is shared."""


def sharer_of(caller: Caller) -> Sharer:
    """Return the sharer that the caller is. A delegate is a different sharer for each user for whom it acts."""
    return caller.tenant, caller.name, caller.subject


class Sharing:
    """Counts each caller's use of a resource, and whether several callers use it. Not safe to share between threads."""

    def __init__(self) -> None:
        self._used: dict[Sharer, int] = {}
        self._last: Sharer | None = None
        self._last_at = float("-inf")
        self._shared_until = float("-inf")

    def used_by(self, sharer: Sharer) -> int:
        """Return how much this caller uses."""
        return self._used.get(sharer, 0)

    def is_shared(self, now: float) -> bool:
        """Return whether several callers use it, or have used it within SHARED_SECONDS. `now` is time.monotonic."""
        return len(self._used) > 1 or now < self._shared_until

    def is_shared_with(self, sharer: Sharer, now: float) -> bool:
        """Return whether it is shared, or another caller than this one uses it."""
        return self.is_shared(now) or any(other != sharer for other in self._used)

    def begin(self, sharer: Sharer, amount: int, now: float) -> None:
        """Add this amount to the use of the caller."""
        self._used[sharer] = self._used.get(sharer, 0) + amount
        self.note(sharer, now)

    def note(self, sharer: Sharer, now: float) -> None:
        """Note that this caller wants to use it."""
        if sharer != self._last:
            if now < self._last_at + SHARED_SECONDS:
                self._shared_until = now + SHARED_SECONDS
            self._last = sharer
        self._last_at = now

    def end(self, sharer: Sharer, amount: int, now: float) -> None:
        """Subtract this amount from the use of the caller."""
        if len(self._used) > 1:
            self._shared_until = now + SHARED_SECONDS
        self._last, self._last_at = sharer, now
        self._reduce(sharer, amount)

    def move(self, sharer: Sharer, to: Sharer) -> None:
        """Count one unit of the use by `sharer` as used by `to` instead."""
        self._used[to] = self._used.get(to, 0) + 1
        self._reduce(sharer, 1)
        if self._last == sharer:
            self._last = to

    def _reduce(self, sharer: Sharer, amount: int) -> None:
        if left := self._used[sharer] - amount:
            self._used[sharer] = left
        else:
            del self._used[sharer]


class _Lane(Generic[_T]):
    """The waiting entries of one caller."""

    __slots__ = ("batch", "credit", "entries", "sharer", "taken")

    def __init__(self, sharer: Sharer) -> None:
        self.sharer = sharer
        self.entries: deque[_T] = deque()
        self.credit = 1
        self.batch = 0
        """The number of the last batch that took entries of this lane."""
        self.taken = 0
        """The weight of the entries that this batch has taken."""


class FairQueue(Generic[_T]):
    """A queue of entries, each of which belongs to a sharer. Not safe to share between threads.

    One sharer alone may have `size_max` waiting entries. While several sharers use the queue, each of them may have a
    quarter of that. If one sharer has filled the queue while it was alone, the others together still have room for
    another quarter. While several sharers use the queue, a batch takes at most the weight `share_max` from each lane,
    so that a batch stays short even if one caller has much work. The first entry of a lane may be larger. An entry
    above `entry_max` is then the only one of its batch, so that no other caller waits for it in the same transaction.
    A sharer uses the queue from `add` until `end`, so also while a batch with its entries runs.
    """

    def __init__(self, *, size_max: int, share_max: int, entry_max: int) -> None:
        self._size_max = size_max
        self._share_max = share_max
        self._entry_max = entry_max
        self._lanes: dict[Sharer, _Lane[_T]] = {}
        self._ring: deque[_Lane[_T]] = deque()
        """The lanes that may be taken from. The first lane has the turn."""
        self._set_aside: list[_Lane[_T]] = []
        """The lanes that have used up their share of the present batch."""
        self._passed_over: list[_Lane[_T]] = []
        """The lanes whose next entry had the turn, but must be the only one of its batch. They have the next turns."""
        self._size = 0
        self._batch = 0
        self._is_shared = False
        self._takes_large = True
        """Whether the present batch may still take an entry that is larger than `entry_max`."""
        self._is_full = False
        """Whether the present batch has taken such an entry."""
        self._sharing = Sharing()

    def __len__(self) -> int:
        return self._size

    @property
    def lanes(self) -> int:
        """The number of sharers with waiting entries."""
        return len(self._lanes)

    @property
    def longest(self) -> int:
        """The number of entries of the sharer with the most."""
        return max((len(lane.entries) for lane in self._lanes.values()), default=0)

    def add(self, sharer: Sharer, entries: Sequence[_T], now: float) -> bool:
        """Append the entries, all or none. Returns False if there is no room."""
        lane = self._lanes.get(sharer)
        count = len(entries)
        if self._size + count > self._size_max // CALLER_SHARE and not self._has_room(sharer, lane, count, now):
            self._sharing.note(sharer, now)
            return False
        self._sharing.begin(sharer, count, now)
        self._lane(sharer).entries.extend(entries)
        self._size += count
        return True

    def begin_batch(self, now: float, *, takes_large: bool = True) -> None:
        """Begin a batch: each lane has its whole share again.

        Without `takes_large`, the batch takes no entry that must be the only one of its batch.
        """
        self._batch += 1
        self._takes_large, self._is_full = takes_large, False
        self._ring.extend(self._set_aside)
        self._ring.extendleft(reversed(self._passed_over))
        self._set_aside.clear()
        self._passed_over.clear()
        self._is_shared = self._sharing.is_shared(now)

    def head(self) -> _T | None:
        """Return the entry that has the turn. Returns None if the batch can take none of the entries that are left."""
        ring = self._ring
        if not ring or self._is_full:
            return None
        if len(ring) > 1:
            while ring[0].credit <= 0:
                ring[0].credit += 1
                ring.rotate(-1)
        return ring[0].entries[0]

    def is_alone(self, weight: int) -> bool:
        """Return whether an entry of this weight must be the only one of the present batch."""
        return weight > self._entry_max and self._is_shared

    def exceeds_share(self, weight: int) -> bool:
        """Return whether the batch cannot take the entry at the head, of this weight. Its lane then loses the turn.

        An entry within `entry_max` is never refused as the first one of its lane.
        """
        if not self._is_shared:
            return False
        if self.is_alone(weight):
            if not self._takes_large:
                self._passed_over.append(self._ring.popleft())
            return not self._takes_large
        lane = self._ring[0]
        if lane.batch != self._batch or lane.taken + weight <= self._share_max:
            return False
        self._set_aside.append(self._ring.popleft())
        return True

    def pop(self, weight: int) -> _T:
        """Take the entry at the head. Its weight counts against the share of its caller."""
        lane = self._ring[0]
        entry = lane.entries.popleft()
        self._size -= 1
        if weight:
            self._takes_large, self._is_full = False, self.is_alone(weight)
        if not lane.entries:
            del self._ring[0], self._lanes[lane.sharer]
            return entry
        if lane.batch != self._batch:
            lane.batch, lane.taken = self._batch, 0
        lane.taken += weight
        if len(self._lanes) > 1:
            lane.credit -= weight
        return entry

    def put_back(self, sharer: Sharer, entry: _T, weight: int) -> None:
        """Put an entry back at the head of its lane, and refund its weight. An empty lane gets the first turn."""
        lane = self._lane(sharer, is_first=True)
        lane.entries.appendleft(entry)
        # Weight that was not charged, because the lane was the only one, must not become credit.
        lane.credit = min(1, lane.credit + weight)
        self._size += 1

    def end(self, sharer: Sharer, now: float) -> None:
        """Note that an entry of this sharer has its outcome."""
        self._sharing.end(sharer, 1, now)

    def _has_room(self, sharer: Sharer, lane: _Lane[_T] | None, count: int, now: float) -> bool:
        mine = len(lane.entries) if lane else 0
        is_shared = self._sharing.is_shared_with(sharer, now)
        mine_max = self._size_max // CALLER_SHARE if is_shared else self._size_max
        total_max = self._size_max + self._size_max // CALLER_SHARE
        return mine + count <= mine_max and self._size + count <= total_max

    def _lane(self, sharer: Sharer, *, is_first: bool = False) -> _Lane[_T]:
        lane = self._lanes.get(sharer)
        if lane is None:
            lane = self._lanes[sharer] = _Lane(sharer)
            if is_first:
                self._ring.appendleft(lane)
            else:
                self._ring.append(lane)
        return lane
