"""The cache of digests: what is kept, and which entries go first."""

from scenario_runner.artifacts.reuse import DigestReuse

ONE, TWO, THREE = ((("a", 1),), (("b", 1), ("c", 1)), (("d", 1),))


def test_the_digests_that_were_kept_first_go_first_and_are_not_counted_twice() -> None:
    reuse = DigestReuse(max_bytes=1_500)
    for _ in range(5):
        reuse.keep(ONE, 1, ("1",))
    reuse.keep(TWO, 2, ("2", "b", "c"))
    assert [reuse.find(ONE, 1), reuse.find(TWO, 2)] == [("1",), ("2", "b", "c")]
    reuse.keep(THREE, 1, ("3",))
    assert [reuse.find(ONE, 1), reuse.find(TWO, 2), reuse.find(THREE, 1)] == [None, ("2", "b", "c"), ("3",)]
