"""Answers of actors that come late or get lost."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import ray

from jobs.indexing.asking import NoAnswerError, Patience, answers_of

pytestmark = pytest.mark.usefixtures("local_ray")


def start(kind: type, *arguments: Any) -> Any:
    return ray.remote(num_cpus=0)(kind).remote(*arguments)


class Slow:
    """Works on one call after the other, two seconds each."""

    def __init__(self) -> None:
        self._calls = 0

    def work(self) -> int:
        self._calls += 1
        time.sleep(2)
        return self._calls

    def calls(self) -> int:
        return self._calls


class Forgetful:
    """Never answers its first calls."""

    def __init__(self, forgotten: int) -> None:
        self._calls, self._forgotten = 0, forgotten

    async def work(self) -> int:
        self._calls += 1
        number = self._calls
        if number <= self._forgotten:
            await asyncio.sleep(3600)
        return number


class Failing:
    def work(self) -> int:
        raise KeyError("a fault of its own")


def test_slow_work_is_waited_for_and_not_repeated() -> None:
    slow = start(Slow)
    assert answers_of([slow], "work", (), Patience(seconds=120, look_again=0.3)) == [1]
    assert ray.get(slow.calls.remote()) == 1
    ray.kill(slow)


def test_what_got_lost_is_asked_for_again_and_the_others_are_not() -> None:
    steady, forgetful = start(Forgetful, 0), start(Forgetful, 2)
    assert answers_of([steady, forgetful], "work", (), Patience(seconds=120, look_again=1)) == [1, 3]
    assert ray.get(steady.work.remote()) == 2, "the steady one was asked once"


def test_answers_that_are_lost_every_time_end_in_an_error() -> None:
    silent = start(Forgetful, 100)
    with pytest.raises(NoAnswerError, match="1 of 1 workers gave no answer within 120 s, or lost it 2 times"):
        answers_of([silent], "work", (), Patience(seconds=120, look_again=0.3, times=2))


def test_work_without_an_end_ends_in_an_error() -> None:
    slow = start(Slow)
    with pytest.raises(NoAnswerError, match="within 1 s"):
        answers_of([slow], "work", (), Patience(seconds=1, look_again=0.3))
    ray.kill(slow)


def test_a_fault_of_the_work_is_raised_at_once() -> None:
    with pytest.raises(KeyError):
        answers_of([start(Failing)], "work", (), Patience(seconds=120))
