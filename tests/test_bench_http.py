"""The benchmark of HTTP services measures what it says: services in virtual time stand in."""

from collections.abc import Callable, Coroutine
from pathlib import Path

import httpx
import pytest
import trio
import trio.testing

from bench_http import Contestant, Examined, Ran, examine, plot, ran
from http_services import Service
from trio_parallel_steps.limits import FixedLimit

SERVICE = Service("served", 10, 0.1)
N = 100

Answer = Callable[[trio.CapacityLimiter], Coroutine[None, None, httpx.Response]]


async def pooled(workers: trio.CapacityLimiter) -> httpx.Response:
    async with workers:
        await trio.sleep(SERVICE.mean)
    return httpx.Response(200)


async def metered(quota: trio.CapacityLimiter) -> httpx.Response:
    return await pooled(quota) if quota.available_tokens else httpx.Response(429)


def measure(contestant: Contestant, answer: Answer = pooled) -> Ran:
    async def main() -> Ran:
        limiter = trio.CapacityLimiter(SERVICE.knee)
        transport = httpx.MockTransport(lambda request: answer(limiter))
        async with httpx.AsyncClient(transport=transport, verify=False) as client:
            return await ran(client, "http://served", contestant.limit(), N)

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def fixed(value: int) -> Contestant:
    return Contestant(str(value), lambda: FixedLimit(value), value)


@pytest.mark.parametrize(("limit", "throughput", "latency"), [(5, 50, 100), (10, 100, 100)])
def test_below_the_knee_it_is_the_limit_that_counts(
    limit: int, throughput: float, latency: float
) -> None:
    found = measure(fixed(limit))
    assert (found.throughput, found.latency) == pytest.approx((throughput, latency))
    assert found.limits == [(0, limit), (pytest.approx(N / throughput), limit)]
    assert found.refused == 0


def test_past_the_knee_requests_wait() -> None:
    found = measure(fixed(20))
    assert found.throughput == pytest.approx(100)
    assert found.latency == pytest.approx(190)  # the first ten do not wait


def test_what_is_refused_is_tried_again() -> None:
    found = measure(fixed(12), metered)
    assert found.refused > 0
    assert found.latency == pytest.approx(100)


@pytest.fixture(scope="module")
def examined() -> Examined:
    return examine(SERVICE, measure, 2)


def test_the_ratios_are_to_the_best_fixed_limit(examined: Examined) -> None:
    assert examined.best.name == "10"
    table = examined.table(N)
    assert table.title == "/served, 10 at once, 100 ms each: 100 requests"
    ratios = {row[0]: row[3] for row in table.rows}
    assert ratios["10"] == 1
    assert ratios["5"] == pytest.approx(0.5)
    assert {"KneeLimit()", "AIMDLimit(min_limit=1)", "Gradient2Limit(min_limit=1)"} < {*ratios}
    assert all(len(figures) == 2 for figures in table.samples.values())


def test_the_plot_is_drawn(examined: Examined, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot([examined], "how, when and where", tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert "how, when and where" in drawn
    assert "KneeLimit()" in drawn
