"""How near does an adaptive limit come to the best fixed one, with a real HTTP server?

The server is a process of its own (`http_services`), once with a bounded pool and once with a quota
that it enforces with 429s; the client is httpx in the branches of a step, on trio.  Each limit gets
the same number of requests, and a ratio is to the fixed limit with the best throughput.  A 429 is
a `Backpressure`, and is tried again after 0.1 s, doubled each time up to 1 s, and up to 0.1 s more.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median

import attrs
import httpx
import trio

from _harness import Cell, Report, Table, open_report
from http_services import POOL, QUOTA, Service, serving
from trio_parallel_steps import Backpressure, Retry, run_branches
from trio_parallel_steps.limits import AIMDLimit, FixedLimit, Gradient2Limit, KneeLimit, Limit

SERVICES = {service.name: service for service in (POOL, QUOTA)}

SWEEP = (0.5, 0.7, 1, 1.4, 2, 2.8)
"""Fixed limits, as shares of the one that the service knows."""

RETRY = Retry(on=httpx.TransportError, attempts=1000, wait_initial=0.1, wait_max=1, wait_jitter=0.1)


@attrs.frozen
class Contestant:
    name: str
    limit: Callable[[], Limit]
    fixed: int | None = None


ADAPTIVE = (
    Contestant("KneeLimit()", KneeLimit),
    Contestant("AIMDLimit(min_limit=1)", lambda: AIMDLimit(min_limit=1)),
    Contestant("Gradient2Limit(min_limit=1)", lambda: Gradient2Limit(min_limit=1)),
)


def fixed_limits(knee: int) -> Iterator[Contestant]:
    for value in (round(share * knee) for share in SWEEP):
        yield Contestant(f"{value}", lambda value=value: FixedLimit(value), value)  # type: ignore[misc]


@attrs.frozen
class Ran:
    throughput: float  # requests a second
    latency: float  # mean of those served, in milliseconds
    refused: int
    cpu: float  # of the client, in percent of one
    limits: list[tuple[float, int]]
    """since when which, in seconds from the start"""


async def ran(client: httpx.AsyncClient, url: str, limit: Limit, number: int) -> Ran:
    latencies: list[float] = []
    limits = [(0.0, limit.value)]
    refused = 0

    async def fetch() -> None:
        nonlocal refused
        sent = trio.current_time()
        response = await client.get(url)
        now = trio.current_time()
        if limit.value != limits[-1][1]:
            limits.append((now - began, limit.value))
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            refused += 1
            raise Backpressure
        response.raise_for_status()
        latencies.append(now - sent)

    began, cpu = trio.current_time(), time.process_time()
    await run_branches(dict.fromkeys(range(number), fetch), limit, retry=RETRY)
    took, cpu = trio.current_time() - began, time.process_time() - cpu
    limits.append((took, limit.value))
    return Ran(number / took, 1e3 * fmean(latencies), refused, 100 * cpu / took, limits)


def measure(contestant: Contestant, url: str, number: int) -> Ran:
    """With connections of its own."""

    async def main() -> Ran:
        unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(
            verify=False, trust_env=False, timeout=60, limits=unlimited
        ) as client:
            return await ran(client, url, contestant.limit(), number)

    return trio.run(main)


@attrs.frozen
class Examined:
    """What its limits did, round by round."""

    service: Service
    rounds: dict[Contestant, list[Ran]]

    def throughput(self, contestant: Contestant) -> float:
        return median(ran.throughput for ran in self.rounds[contestant])

    @property
    def fixed(self) -> list[Contestant]:
        return [contestant for contestant in self.rounds if contestant.fixed is not None]

    @property
    def best(self) -> Contestant:
        return max(self.fixed, key=self.throughput)

    def table(self, number: int) -> Table:
        best = self.throughput(self.best)
        rows: list[list[Cell]] = []
        for contestant, rounds in self.rounds.items():
            throughputs = [ran.throughput for ran in rounds]
            rows.append(
                [
                    contestant.name,
                    median(throughputs),
                    f"{min(throughputs):.0f}-{max(throughputs):.0f}",
                    median(throughputs) / best,
                    median(ran.latency for ran in rounds),
                    median(100 * ran.refused / (ran.refused + number) for ran in rounds),
                    " ".join(str(ran.limits[-1][1]) for ran in rounds),
                    median(ran.cpu for ran in rounds),
                ]
            )
        columns = (
            "limit", "requests/s", "range", f"x {self.best.name}, the best", "latency, ms",
            "refused %", "at the end", "client's CPU %",
        )  # fmt: skip
        title = f"{about(self.service)}: {number:,} requests"
        samples = {
            contestant.name: [ran.throughput for ran in rounds]
            for contestant, rounds in self.rounds.items()
        }
        return Table(title, columns, rows, samples)


def about(service: Service) -> str:
    return f"/{service.name}, {service.knee} at once, {1e3 * service.mean:.0f} ms each"


def examine(
    service: Service, measure: Callable[[Contestant], Ran], number_of_rounds: int
) -> Examined:
    contestants = [*fixed_limits(service.knee), *ADAPTIVE]
    rounds: dict[Contestant, list[Ran]] = {contestant: [] for contestant in contestants}
    for turn in range(number_of_rounds):
        first = turn * len(contestants) // number_of_rounds
        for contestant in (*contestants[first:], *contestants[:first]):
            rounds[contestant].append(measure(contestant))
    return Examined(service, rounds)


# ---------------------------------------------------------------- the plot


def plot(examined: Sequence[Examined], caption: str, file: Path) -> None:
    """Throughput by limit, the adaptive ones where they ended; below, how they came there."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(examined), 7.5), layout="constrained")
    figure.suptitle(caption, fontsize=8)
    columns = figure.subplots(2, len(examined), squeeze=False).T
    for each, (above, below) in zip(examined, columns, strict=True):
        fixed = [contestant.fixed for contestant in each.fixed]
        throughputs = [each.throughput(contestant) for contestant in each.fixed]
        above.set_title(about(each.service))
        above.plot(fixed, throughputs, "o-", color="0.5", label="fixed")
        above.axhline(0.9 * max(throughputs), color="0.5", linestyle=":", label="0.9 of the best")
        above.set(xlabel="limit", ylabel="requests/s", xscale="log", ylim=0)
        below.axhline(each.service.knee, color="0.5", linestyle=":")
        below.set(xlabel="seconds", ylabel="limit", yscale="log")
        for contestant in ADAPTIVE:
            rounds = each.rounds[contestant]
            ends = [ran.limits[-1][1] for ran in rounds]
            (line,) = below.step(*zip(*rounds[0].limits, strict=True), where="post", linewidth=1)
            color = line.get_color()
            shown = [ran.throughput for ran in rounds]
            above.plot(ends, shown, "D", color=color, label=contestant.name)
        for axis, which in ((above.xaxis, fixed), (below.yaxis, fixed)):
            axis.set_ticks(which, [str(value) for value in which])
            axis.set_ticks([], minor=True)
    columns[0][0].legend(fontsize=8)
    with mpl.rc_context({"svg.fonttype": "none"}):
        figure.savefig(file)


def caption(report: Report, number: int) -> str:
    ran = f"bench_http.py --rounds {report.options.rounds} --requests {number}"
    where = "; ".join(report.machine[of] for of in ("date", "cpu", "os", "python"))
    return f"{ran}\n{where}"


# ---------------------------------------------------------------- the command


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--service", nargs="+", choices=SERVICES, default=[*SERVICES], help="these only"
    )
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="of all limits")
    parser.add_argument("--requests", type=int, metavar="N", help="to each service, each round")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw all to an SVG or PNG file")


def main(report: Report) -> None:
    options = report.options
    number = options.requests or (100 if report.quick else 400)
    all_examined = []
    for name in options.service:
        service = SERVICES[name]
        with serving() as address:
            url = f"{address}/{service.name}"
            examined = examine(service, partial(measure, url=url, number=number), options.rounds)
        report.add(examined.table(number))
        all_examined.append(examined)
    if options.plot is not None:
        plot(all_examined, caption(report, number), options.plot)


if __name__ == "__main__":
    report = open_report(__doc__, add_options)
    main(report)
    report.save()
