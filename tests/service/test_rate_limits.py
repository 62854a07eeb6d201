"""Token buckets on a clock that the test moves."""

from __future__ import annotations

import pytest

from service.rate_limits import TokenBucket


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def take_while_open(bucket: TokenBucket, tokens: float, most: int = 1000) -> int:
    """How often something could be taken."""
    taken = 0
    while taken < most and bucket.retry_after_s() is None:
        bucket.take(tokens)
        taken += 1
    return taken


def test_a_full_bucket_holds_one_second() -> None:
    assert take_while_open(TokenBucket(5.0, Clock()), 1.0) == 5


def test_over_time_no_more_is_taken_than_comes_in() -> None:
    clock = Clock()
    bucket = TokenBucket(5.0, clock)
    taken = 0
    for _ in range(600):
        taken += take_while_open(bucket, 1.0)
        clock.now_s += 0.1
    assert 60 * 5 <= taken <= 60 * 5 + 6


def test_a_slow_rate_lets_the_first_one_through_and_says_when_to_come_back() -> None:
    clock = Clock()
    bucket = TokenBucket(0.1, clock)
    bucket.take(1.0)
    bucket.take(0.5)
    assert bucket.retry_after_s() == 5
    clock.now_s += 5.1
    assert bucket.retry_after_s() is None


def test_what_is_owed_has_to_come_in_first() -> None:
    clock = Clock()
    bucket = TokenBucket(100.0, clock)
    bucket.take(1100.0)
    assert bucket.retry_after_s() == 10
    clock.now_s += 9.9
    assert bucket.retry_after_s() == 1
    clock.now_s += 0.2
    assert bucket.retry_after_s() is None


def test_waiting_longer_fills_no_more_than_a_second_brings() -> None:
    clock = Clock()
    bucket = TokenBucket(10.0, clock)
    take_while_open(bucket, 1.0)
    clock.now_s += 3600.0
    assert take_while_open(bucket, 1.0) == 10


@pytest.mark.parametrize("per_s", [1e-3, 1.0, 1e9])
def test_retry_after_is_whole_seconds_and_at_least_one(per_s: float) -> None:
    bucket = TokenBucket(per_s, Clock())
    bucket.take(bucket.per_s + 1.0)
    wait_s = bucket.retry_after_s()
    assert isinstance(wait_s, int)
    assert wait_s >= 1
