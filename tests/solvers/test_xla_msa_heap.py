"""Best fit, places and repacking against a byte-by-byte picture of memory."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from solvers.msa_attempt import Place
from solvers.msa_heap import Block, Chunk, ChunkHeap, best_gap, repack

TIMES, CAPACITY = 8, 16

requests = st.lists(
    st.tuples(st.integers(0, TIMES - 1), st.integers(0, 4), st.integers(1, 8)), max_size=12
)


class Picture:
    """Every byte at every time."""

    def __init__(self) -> None:
        self.taken = [[False] * CAPACITY for _ in range(TIMES)]

    def is_free(self, start: int, end: int, offset: int, size: int) -> bool:
        if offset + size > CAPACITY:
            return False
        return not any(
            self.taken[time][byte]
            for time in range(start, end + 1)
            for byte in range(offset, offset + size)
        )

    def best_fit(self, start: int, end: int, size: int, alignment: int) -> int | None:
        """The smallest gap that holds it from its first aligned byte; the top gap comes last."""
        gaps: list[tuple[float, int]] = []
        byte = 0
        while byte < CAPACITY:
            length = 0
            while byte + length < CAPACITY and self.is_free(start, end, byte + length, 1):
                length += 1
            first = -(-byte // alignment) * alignment
            if byte + length - first >= size:
                top = byte + length == CAPACITY
                gaps.append((float("inf") if top else byte + length - first, first))
            byte += length + 1
        return min(gaps)[1] if gaps else None

    def add(self, chunk: Chunk) -> None:
        for time in range(chunk.start, chunk.end + 1):
            for byte in range(chunk.offset, chunk.offset + chunk.size):
                self.taken[time][byte] = True


@given(requests, st.sampled_from([1, 2, 4]))
def test_best_fit_byte_by_byte(wanted: list[tuple[int, int, int]], alignment: int) -> None:
    heap, picture = ChunkHeap(TIMES, CAPACITY, alignment), Picture()
    for start, length, size in wanted:
        end = min(start + length, TIMES - 1)
        offset = heap.best_fit(start, end, size)
        assert offset == picture.best_fit(start, end, size, alignment)
        if offset is not None:
            assert offset % alignment == 0
            assert heap.is_free(start, end, offset, size)
            chunk = Chunk(start, end, offset, size)
            heap.add(chunk)
            picture.add(chunk)
    for offset in range(CAPACITY):
        assert heap.is_free(1, 4, offset, 3) == picture.is_free(1, 4, offset, 3)


@given(requests)
def test_what_is_removed_is_free_again(wanted: list[tuple[int, int, int]]) -> None:
    heap = ChunkHeap(TIMES, CAPACITY)
    added = []
    for start, length, size in wanted:
        end = min(start + length, TIMES - 1)
        offset = heap.best_fit(start, end, size)
        if offset is not None:
            chunk = Chunk(start, end, offset, size)
            added.append((heap.add(chunk), chunk))
    for key, chunk in added:
        heap.remove(key, chunk)
    assert not heap.used.any()
    assert heap.taken(0, TIMES - 1) == []


def test_the_smallest_gap_wins_and_the_lowest_of_equals() -> None:
    taken = [(2, 4), (7, 9), (11, 12)]
    assert best_gap(list(taken), 2, 100, 1) == 0
    assert best_gap(list(taken), 3, 100, 1) == 4
    assert best_gap(list(taken), 4, 100, 1) == 12
    assert best_gap(list(taken), 4, 15, 1) is None


@given(requests)
def test_repacked_blocks_do_not_overlap(wanted: list[tuple[int, int, int]]) -> None:
    blocks = [Block(((s, min(s + n, TIMES - 1), size),)) for s, n, size in wanted]
    offsets = repack(blocks, TIMES, CAPACITY, 1)
    if offsets is None:
        assert sum(block.size for block in blocks) > CAPACITY
        return
    picture = Picture()
    for block, offset in zip(blocks, offsets, strict=True):
        for start, end, size in block.pieces:
            assert picture.is_free(start, end, offset, size)
            picture.add(Chunk(start, end, offset, size))


def test_pieces_of_a_block_get_one_offset() -> None:
    """The second piece of the long block meets the other one: both pieces go above it."""
    split = Block(((0, 0, 4), (5, 7, 4)))
    other = Block(((0, 7, 6),))
    assert repack([split, other], TIMES, CAPACITY, 1) == [6, 0]
    assert repack([split, other], TIMES, 9, 1) is None


def test_gaps_of_a_place() -> None:
    place = Place(0, [(1, Chunk(2, 3, 0, 4)), (2, Chunk(6, 6, 0, 4))])
    assert list(place.gaps(0, 8)) == [(0, 1), (4, 5), (7, 8)]
    assert list(place.gaps(2, 3)) == []
    assert list(place.gaps(3, 4)) == [(4, 4)]


@given(st.permutations(range(6)), st.integers(0, 17), st.integers(0, 17))
def test_gaps_whatever_the_order_of_holding(order: list[int], start: int, end: int) -> None:
    place = Place(0)
    for number in order:
        place.add((number, Chunk(3 * number, 3 * number + number % 2, 0, 4)))
    place.remove((order[0], Chunk(3 * order[0], 3 * order[0] + order[0] % 2, 0, 4)))
    held = {3 * n + i for n in order[1:] for i in range(n % 2 + 1)}
    free = {time for low, high in place.gaps(start, end) for time in range(low, high + 1)}
    assert free == set(range(start, end + 1)) - held


class CountedReads(list[tuple[int, Chunk]]):
    """Counts how many of its elements are looked at."""

    reads = 0

    def __getitem__(self, index: int) -> tuple[int, Chunk]:  # type: ignore[override]
        self.reads += 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[tuple[int, Chunk]]:
        return (self[index] for index in range(len(self)))


def test_gaps_of_a_short_time_do_not_look_at_all_that_is_held() -> None:
    held = CountedReads((time, Chunk(2 * time, 2 * time, 0, 4)) for time in range(1000))
    assert list(Place(0, held).gaps(1500, 1503)) == [(1501, 1501), (1503, 1503)]
    assert held.reads < 30
