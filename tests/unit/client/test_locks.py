"""The book of locks: merged and cut as fcntl(2) says."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from vstor.client.locks import END, RDLCK, UNLCK, WRLCK, LockBook
from vstor.proto.messages import LockRange


def lock(type_: int, start: int, end: int, owner: int = 1, ino: int = 7, flock: bool = False) -> LockRange:
    return LockRange(ino, owner, type_, start, end, 99, flock)


def ranges(book: LockBook) -> list[tuple[int, int, int]]:
    return [(held.start, held.end, held.type) for held in book.all()]


def test_a_hole_splits_and_neighbours_merge() -> None:
    book = LockBook()
    book.set(lock(WRLCK, 0, 99))
    book.set(lock(UNLCK, 40, 59))
    assert ranges(book) == [(0, 39, WRLCK), (60, 99, WRLCK)]
    book.set(lock(WRLCK, 40, 59))
    assert ranges(book) == [(0, 99, WRLCK)]
    book.set(lock(RDLCK, 10, 19))
    assert ranges(book) == [(0, 9, WRLCK), (10, 19, RDLCK), (20, 99, WRLCK)]
    assert book.count == 3
    book.set(lock(UNLCK, 0, END))
    assert ranges(book) == []
    assert book.count == 0


def test_owners_files_and_kinds_are_apart() -> None:
    book = LockBook()
    book.set(lock(WRLCK, 0, END, owner=1))
    book.set(lock(WRLCK, 0, END, owner=2, ino=8))
    book.set(lock(WRLCK, 0, END, owner=1, ino=9, flock=True))
    assert book.holds(7, 1, False)
    assert not book.holds(7, 2, False)
    assert not book.holds(7, 1, True)
    assert book.any_posix(7)
    assert not book.any_posix(9)
    book.set(lock(UNLCK, 0, END, owner=1))
    assert not book.any_posix(7)
    assert book.holds(8, 2, False)


@given(st.lists(st.tuples(st.sampled_from([RDLCK, WRLCK, UNLCK]), st.integers(0, 30), st.integers(0, 30)), max_size=30))
def test_it_is_the_same_as_a_map_of_bytes(steps: list[tuple[int, int, int]]) -> None:
    book, model = LockBook(), {}
    for type_, a, b in steps:
        start, end = min(a, b), max(a, b)
        book.set(lock(type_, start, end))
        for at in range(start, end + 1):
            model[at] = type_
    got = {at: held.type for held in book.all() for at in range(held.start, held.end + 1)}
    assert got == {at: type_ for at, type_ in model.items() if type_ != UNLCK}
    assert book.count == len(book.all())
    flat = ranges(book)
    assert all(x[1] < y[0] for x, y in itertools.pairwise(flat))
    assert not any(x[1] + 1 == y[0] and x[2] == y[2] for x, y in itertools.pairwise(flat))
