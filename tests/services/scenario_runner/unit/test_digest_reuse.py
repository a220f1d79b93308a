"""The cache of digests: what is kept, and which entries go first."""

import tracemalloc

from scenario_runner.artifacts.reuse import DigestReuse

ONE, TWO, THREE = ((("a", 1),), (("b", 1), ("c", 1)), (("d", 1),))


def test_the_digests_that_were_kept_first_go_first_and_are_not_counted_twice() -> None:
    reuse = DigestReuse(max_bytes=1_700)
    for _ in range(5):
        reuse.keep(ONE, 1, ("1",))
    reuse.keep(TWO, 2, ("2", "b", "c"))
    assert [reuse.find(ONE, 1), reuse.find(TWO, 2)] == [("1",), ("2", "b", "c")]
    reuse.keep(THREE, 1, ("3",))
    assert [reuse.find(ONE, 1), reuse.find(TWO, 2), reuse.find(THREE, 1)] == [None, ("2", "b", "c"), ("3",)]


def test_digests_that_are_larger_than_the_whole_cache_drive_out_no_others() -> None:
    reuse = DigestReuse(max_bytes=1_700)
    reuse.keep(ONE, 1, ("1",))
    many = tuple((f"e{number}", 1) for number in range(10))
    reuse.keep(many, 1, ("1",) * 11)
    assert [reuse.find(ONE, 1), reuse.find(many, 1)] == [("1",), None]


def test_digests_of_objects_with_long_keys_are_counted_by_what_they_take() -> None:
    reuse = DigestReuse(max_bytes=1 << 30)
    tracemalloc.start()
    try:
        for number in range(1_000):
            key = f"{number:08d}" + "k" * 1_000
            reuse.keep((("bucket", key, f"e{number}", 1 << 40, number),), 1, (key[:64],) * 2)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken * 0.8 < reuse._bytes < taken * 1.3
