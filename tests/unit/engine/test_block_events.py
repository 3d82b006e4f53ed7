from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kv.block_events import BlockJournal, BlockReader
from engine.kv.block_pool import BlockPool


def follow(reader: BlockReader, known: set[bytes], limit: int) -> bool:
    """Take one page; False: there is more."""
    events = reader.read(limit)
    if events.reset:
        known.clear()
    assert len(events.stored) + len(events.evicted) <= limit
    known.difference_update(events.evicted)
    known.update(events.stored)
    return events.until_seq == events.newest_seq


def test_a_pool_tells_what_it_caches_and_evicts() -> None:
    journal = BlockJournal(8)
    pool = BlockPool(2, journal)
    reader, known = BlockReader(journal), set[bytes]()
    first, second = pool.allocate(2)
    pool.register(first, b"a")
    pool.register(second, b"a")
    assert follow(reader, known, 10)
    assert known == {b"a"}
    for block_id in (first, second):
        pool.release(block_id)
    pool.allocate(2)
    events = reader.read(10)
    assert (events.reset, events.stored, events.evicted) == (False, (), (b"a",))


def test_a_hash_is_told_once_with_its_last_state() -> None:
    journal = BlockJournal(8)
    reader = BlockReader(journal)
    reader.read(10)
    journal.stored(b"a")
    journal.evicted(b"a")
    journal.stored(b"b")
    journal.evicted(b"b")
    journal.stored(b"b")
    events = reader.read(10)
    assert (events.stored, events.evicted) == ((b"b",), (b"a",))


def test_a_reader_that_missed_evictions_starts_over() -> None:
    journal = BlockJournal(2)
    reader, known = BlockReader(journal), set[bytes]()
    for name in (b"a", b"b", b"c", b"d"):
        journal.stored(name)
    follow(reader, known, 10)
    for name in (b"a", b"b", b"c"):
        journal.evicted(name)
    events = reader.read(10)
    assert (events.reset, events.stored) == (True, (b"d",))
    assert reader.read(10).reset is False


def test_old_evictions_do_not_disturb_a_reader_that_is_still_starting_over() -> None:
    journal = BlockJournal(1)
    for index in range(20):
        journal.stored(bytes([index]))
    for index in range(15, 20):
        journal.evicted(bytes([index]))
    reader, known = BlockReader(journal), set[bytes]()
    pages = 1
    while not follow(reader, known, 4):
        pages += 1
        assert pages < 10
    assert known == {bytes([index]) for index in range(15)}


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_reader_ends_up_with_what_is_cached(data: st.DataObject) -> None:
    journal = BlockJournal(data.draw(st.integers(1, 6)))
    readers = [(BlockReader(journal), set[bytes](), limit) for limit in (1, 3, 50)]
    cached: set[bytes] = set()
    for action in data.draw(st.lists(st.integers(0, 15), max_size=80)):
        if action >= 12:
            reader, known, limit = readers[action % 3]
            follow(reader, known, limit)
        else:
            name = bytes([action])
            if name in cached:
                journal.evicted(name)
            else:
                journal.stored(name)
            cached ^= {name}
    for reader, known, limit in readers:
        while not follow(reader, known, limit):
            pass
        assert known == cached
