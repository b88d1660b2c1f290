"""The probes, on made-up machines and on this one: cgroups, PSI, processes and their children."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import psutil
import pytest

from trio_parallel_steps import usable_cpus
from trio_parallel_steps._readings import Figures, Scope
from trio_parallel_steps.hosts import current_run
from trio_parallel_steps.pressure import _psutil, current_sampler
from trio_parallel_steps.pressure._cgroups import CgroupProbe, memory_groups
from trio_parallel_steps.pressure._machine import probes
from trio_parallel_steps.pressure._psi import PsiProbe
from trio_parallel_steps.pressure._psutil import CpuProbe, Family, HostProbe, IoProbe, MemoryProbe
from trio_parallel_steps.pressure._rates import Rate

MB = 2**20


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


# ---------------------------------------------------------------- rates


def test_a_rate_is_of_the_last_second() -> None:
    rate = Rate()
    assert rate.add(0.0, 10) is None
    assert rate.add(0.4, 12) is None  # too short to tell
    assert rate.add(0.5, 15) == 10
    assert rate.add(1.0, 15) == 5
    assert rate.add(1.5, 15) == 0  # since 0.5
    assert rate.add(10.0, 32) == pytest.approx(2)  # there is nothing younger


# ---------------------------------------------------------------- cgroups


class Machine:
    """A root directory of one's own, with /proc/self and /sys/fs/cgroup in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "proc/self").mkdir(parents=True)
        self.mounts = ""

    def is_in(self, *lines: str) -> None:
        (self.root / "proc/self/cgroup").write_text("".join(f"{line}\n" for line in lines))

    def mount(self, line: str) -> None:
        self.mounts += f"{line}\n"
        (self.root / "proc/self/mountinfo").write_text(self.mounts)

    def mount_v2(self, shown: str = "/", at: str = "/sys/fs/cgroup") -> None:
        self.mount(f"30 23 0:26 {shown} {at} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate")

    def mount_v1(self, shown: str = "/", at: str = "/sys/fs/cgroup/memory") -> None:
        self.mount(f"35 31 0:32 {shown} {at} rw,relatime shared:9 - cgroup cgroup rw,memory")

    def write(self, path: str, **files: object) -> None:
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(f"{text}\n")

    def v2(self, group: str, limit: object, used_mb: float, inactive_mb: float = 0.0) -> None:
        self.write(
            f"sys/fs/cgroup/{group}",
            memory__max=limit,
            memory__current=int(used_mb * MB),
            memory__stat=f"anon 1\ninactive_file {int(inactive_mb * MB)}\nactive_file 7",
        )

    def v1(self, group: str, limit: object, used_mb: float, inactive_mb: float = 0.0) -> None:
        self.write(
            f"sys/fs/cgroup/memory/{group}",
            memory__limit_in_bytes=limit,
            memory__usage_in_bytes=int(used_mb * MB),
            memory__stat=f"inactive_file 3\ntotal_inactive_file {int(inactive_mb * MB)}",
        )

    def scopes(self) -> tuple[Scope, ...]:
        return CgroupProbe(self.root).read()["cgroups"]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_v2_every_limited_group_up_to_the_root(machine: Machine) -> None:
    machine.is_in("0::/a/b/c")
    machine.mount_v2()
    machine.v2("a/b/c", 100 * MB, 50, 20)
    machine.v2("a/b", "max", 60)
    machine.v2("a", 200 * MB, 80, 100)  # never less than nothing
    machine.v2("other", MB, 1)
    assert machine.scopes() == (Scope("cgroup /a/b/c", 30, 100), Scope("cgroup /a", 0, 200))


def test_v2_high_is_a_limit_too(machine: Machine) -> None:
    machine.is_in("0::/a")
    machine.mount_v2()
    machine.v2("a", 100 * MB, 50)
    machine.write("sys/fs/cgroup/a", memory__high=80 * MB)
    assert machine.scopes() == (Scope("cgroup /a", 50, 80),)


def test_v1_every_limited_group_up_to_the_root(machine: Machine) -> None:
    machine.is_in("9:name=systemd:/", "4:cpu,memory:/a/b", "0::/")
    machine.mount_v1()
    machine.v1("a/b", 100 * MB, 50, 20)
    machine.v1("a", 9223372036854771712, 60)  # v1's word for none
    machine.v1("", 300 * MB, 90)
    assert machine.scopes() == (Scope("cgroup /a/b", 30, 100), Scope("cgroup /", 90, 300))


def test_both_versions_at_once(machine: Machine) -> None:
    machine.is_in("4:memory:/one", "0::/two")
    machine.mount("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755")
    machine.mount("32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu")
    machine.mount_v1()
    machine.mount_v2(at="/sys/fs/cgroup/unified")
    machine.v1("one", 100 * MB, 50)
    machine.v2("unified/two", 200 * MB, 50)
    assert machine.scopes() == (Scope("cgroup /one", 50, 100), Scope("cgroup /two", 50, 200))


def test_in_a_container_that_sees_its_own_group_as_the_root(machine: Machine) -> None:
    machine.is_in("0::/")
    machine.mount_v2()
    machine.v2("", 100 * MB, 50)
    assert machine.scopes() == (Scope("cgroup /", 50, 100),)


def test_in_a_container_whose_paths_are_the_hosts(machine: Machine) -> None:
    """Field 4 of mountinfo is the group that the mount shows."""
    machine.is_in("4:memory:/docker/0123/mine")
    machine.mount_v1(shown="/docker/0123")
    machine.v1("mine", 50 * MB, 10)
    machine.v1("", 100 * MB, 50)
    assert machine.scopes() == (Scope("cgroup /mine", 10, 50), Scope("cgroup /", 50, 100))


@pytest.mark.parametrize("path", ["/../elsewhere", "/docker/other", "/docker/01234"])
def test_what_lies_outside_of_the_mount_is_out_of_sight(machine: Machine, path: str) -> None:
    machine.is_in(f"0::{path}")
    machine.mount_v2(shown="/docker/0123")
    machine.v2("", 100 * MB, 50)
    assert machine.scopes() == (Scope("cgroup /", 50, 100),)


def test_a_path_that_is_not_there_leaves_its_ancestors(machine: Machine) -> None:
    machine.is_in("4:memory:/docker/0123")
    machine.mount_v1()
    machine.v1("", 100 * MB, 50)
    assert machine.scopes() == (Scope("cgroup /", 50, 100),)


def test_a_mount_may_have_spaces_in_its_path(machine: Machine) -> None:
    machine.is_in("0::/")
    machine.mount_v2(at=r"/sys/fs/my\040cgroup")
    machine.write("sys/fs/my cgroup", memory__max=MB, memory__current=MB)
    assert machine.scopes() == (Scope("cgroup /", 1, 1),)  # and without memory.stat


def test_a_stat_without_the_line(machine: Machine) -> None:
    machine.is_in("0::/")
    machine.mount_v2()
    machine.write("sys/fs/cgroup", memory__max=MB, memory__current=MB, memory__stat="anon 1")
    assert machine.scopes() == (Scope("cgroup /", 1, 1),)


def test_without_cgroups_there_are_no_scopes(machine: Machine) -> None:
    assert machine.scopes() == ()
    machine.is_in("3:cpu:/a")
    machine.mount_v2()
    assert machine.scopes() == ()
    assert list(memory_groups(machine.root)) == []


def test_a_mount_of_nothing_is_passed_over(machine: Machine) -> None:
    machine.is_in("0::/")
    machine.mount("nonsense")
    assert machine.scopes() == ()


def test_a_limit_is_read_anew_and_looked_for_now_and_then(machine: Machine, clock: Clock) -> None:
    machine.is_in("0::/a")
    machine.mount_v2()
    machine.v2("a", 100 * MB, 50)
    machine.v2("", "max", 70)
    probe = CgroupProbe(machine.root, clock)
    assert len(probe.read()["cgroups"]) == 1
    machine.v2("a", 200 * MB, 50)
    machine.v2("", 300 * MB, 70)
    assert probe.read()["cgroups"] == (Scope("cgroup /a", 50, 200),)
    clock.time += 10
    assert probe.read()["cgroups"] == (Scope("cgroup /a", 50, 200), Scope("cgroup /", 70, 300))
    machine.v2("", "max", 70)
    assert probe.read()["cgroups"] == (Scope("cgroup /a", 50, 200),)
    (machine.root / "sys/fs/cgroup/a/memory.current").unlink()
    assert probe.read()["cgroups"] == ()


# ---------------------------------------------------------------- PSI


def psi(some: float, full: float | None) -> str:
    text = f"some avg10=99.00 avg60=1.00 avg300=0.00 total={int(some * 1e6)}"
    if full is not None:
        text += f"\nfull avg10=99.00 avg60=1.00 avg300=0.00 total={int(full * 1e6)}"
    return text


def test_psi_is_of_the_totals(machine: Machine, clock: Clock) -> None:
    machine.write("proc/pressure", memory=psi(5, 3), cpu=psi(10, None), io=psi(0, 0))
    probe = PsiProbe(machine.root, clock)
    assert probe.read() == {}
    clock.time += 1
    machine.write("proc/pressure", memory=psi(5.5, 3.25), cpu=psi(12, None))
    shares = {"memory some": 0.5, "memory full": 0.25, "cpu some": 1, "io some": 0, "io full": 0}
    assert probe.read() == {"psi": shares}
    clock.time += 1
    shares = dict.fromkeys(shares, 0)
    assert probe.read() == {"psi": shares}


def test_psi_of_our_own_group_where_there_is_one(machine: Machine, clock: Clock) -> None:
    machine.is_in("4:memory:/b", "0::/a")
    machine.mount_v1()
    machine.mount_v2()
    machine.write("proc/pressure", memory=psi(0, 0), cpu=psi(0, 0))
    machine.write("sys/fs/cgroup/a", memory__pressure=psi(0, 0))
    probe = PsiProbe(machine.root, clock)
    probe.read()
    clock.time += 1
    machine.write("proc/pressure", memory=psi(1, 1), cpu=psi(1, 1))
    machine.write("sys/fs/cgroup/a", memory__pressure=psi(0.5, 0.25))
    shares = {"memory some": 0.5, "memory full": 0.25, "cpu some": 1, "cpu full": 1}
    assert probe.read() == {"psi": shares}


def test_a_kernel_without_psi(machine: Machine) -> None:
    probe = PsiProbe(machine.root)
    assert probe.read() == probe.read() == {}


# ---------------------------------------------------------------- processes, made up

Memory = namedtuple("Memory", "rss")
Times = namedtuple("Times", "user system children_user children_system")
Io = namedtuple("Io", "read_bytes write_bytes")


class FakeProcess:
    """What is asked of a `psutil.Process`; an exception in place of a figure is raised."""

    def __init__(self, pid: int, rss_mb: float = 0.0) -> None:
        self.pid = pid
        self.rss: Any = int(rss_mb * MB)
        self.times: Any = Times(0.0, 0.0, 0.0, 0.0)
        self.io: Any = Io(0, 0)
        self.children_are: list[FakeProcess] = []
        self.runs = True
        self.listed = 0

    def is_running(self) -> bool:
        return self.runs

    def children(self, recursive: bool) -> list[FakeProcess]:
        assert recursive
        self.listed += 1
        return self.children_are

    def memory_info(self) -> Any:
        return Memory(told(self.rss))

    def cpu_times(self) -> Any:
        return told(self.times)

    def io_counters(self) -> Any:
        return told(self.io)


def told(figure: Any) -> Any:
    if isinstance(figure, Exception):
        raise figure
    return figure


class Processes:
    """All there are, by their numbers; this one has the first."""

    def __init__(self) -> None:
        self.own = FakeProcess(1)
        self.all = {1: self.own}

    def start(self, pid: int, rss_mb: float = 0.0) -> FakeProcess:
        self.all[pid] = process = FakeProcess(pid, rss_mb)
        self.own.children_are = [*self.own.children_are, process]
        return process

    def end(self, pid: int) -> None:
        gone = self.all.pop(pid)
        gone.runs = False
        gone.rss = gone.times = gone.io = psutil.NoSuchProcess(pid)
        self.own.children_are = [child for child in self.own.children_are if child is not gone]

    def __call__(self, pid: int = 1) -> FakeProcess:
        if pid not in self.all:
            raise psutil.NoSuchProcess(pid)
        return self.all[pid]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Processes:
    made_up = Processes()
    monkeypatch.setattr(psutil, "Process", made_up)
    return made_up


@pytest.fixture
def family(processes: Processes, clock: Clock, tmp_path: Path) -> Family:
    return Family(tmp_path, clock)


def memory_of(family: Family) -> float:
    return MemoryProbe(family, lambda: 0.0).read()["working_set_mb"]


def test_memory_is_of_this_process_and_its_children(processes: Processes, family: Family) -> None:
    processes.own.rss = 100 * MB
    processes.start(2, 20)
    processes.start(3, 3)
    assert memory_of(family) == 123
    processes.start(4, 1000)
    processes.end(2)
    assert memory_of(family) == 1103


@pytest.mark.parametrize(
    "error", [psutil.NoSuchProcess(2), psutil.AccessDenied(2), psutil.ZombieProcess(2)]
)
def test_a_child_that_can_not_be_read_does_not_count(
    processes: Processes, family: Family, clock: Clock, error: Exception
) -> None:
    processes.own.rss = 100 * MB
    child = processes.start(2, 20)
    processes.start(3, 3)
    child.rss = child.times = child.io = error
    assert memory_of(family) == 103
    cpu = CpuProbe(family, lambda: 1, clock)
    io = IoProbe(family, clock)
    assert cpu.read() == io.read() == {}
    clock.time += 1
    assert cpu.read() == {"cpu_percent": 0}
    assert io.read() == {"io": {"read": 0, "write": 0}}


def test_a_child_that_vanishes_between_the_list_and_the_look(
    processes: Processes, family: Family
) -> None:
    processes.own.rss = 100 * MB
    processes.start(2, 20)
    del processes.all[2]
    assert memory_of(family) == 100


def test_what_can_not_be_read_of_this_process_is_an_error(
    processes: Processes, family: Family
) -> None:
    processes.own.rss = psutil.AccessDenied(1)
    with pytest.raises(psutil.AccessDenied):
        memory_of(family)


def test_processes_are_kept_but_not_another_of_the_same_number(
    processes: Processes, family: Family
) -> None:
    first = processes.start(2, 20)
    assert list(family.measure(lambda process: process)) == [processes.own, first]
    assert list(family.measure(lambda process: process)) == [processes.own, first]
    processes.end(2)
    second = processes.start(2, 5)
    assert list(family.measure(lambda process: process)) == [processes.own, second]


def test_children_are_listed_so_seldom_that_it_takes_a_hundredth_of_the_time(
    processes: Processes, family: Family, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(recursive: bool) -> list[FakeProcess]:
        clock.time += 0.005
        return FakeProcess.children(processes.own, recursive)

    monkeypatch.setattr(processes.own, "children", slow)
    processes.own.rss = 100 * MB
    for _ in range(99):
        memory_of(family)
        clock.time += 0.005
    assert processes.own.listed == 1
    processes.start(2, 20)
    assert memory_of(family) == 100
    clock.time += 0.1
    assert memory_of(family) == 120
    assert processes.own.listed == 2


def test_on_linux_the_kernel_lists_the_children_of_each_thread(
    processes: Processes, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_psutil, "getpid", lambda: 1)

    def write(pid: int, thread: int, text: str) -> None:
        folder = tmp_path / f"{pid}/task/{thread}"
        folder.mkdir(parents=True)
        (folder / "children").write_text(text)

    write(1, 1, "2 ")
    write(1, 11, "3 4 ")
    write(2, 2, "5 ")
    write(3, 3, "")
    (tmp_path / "5/task/5/children").mkdir(parents=True)  # can't be read: it has ended
    for pid in (2, 3, 5):
        processes.start(pid, pid)
    family = Family(tmp_path, clock)
    assert {process.pid for process in family.measure(lambda process: process)} == {1, 2, 3, 5}
    assert processes.own.listed == 0


def test_the_peak_is_more_than_what_is_seen_only_where_it_is_new(
    processes: Processes, family: Family
) -> None:
    peaks = iter([500.0 * MB, 500.0 * MB, 800.0 * MB, 800.0 * MB])
    processes.own.rss = 100 * MB
    processes.start(2, 20)
    probe = MemoryProbe(family, lambda: next(peaks))
    assert probe.read() == {"working_set_mb": 120, "peak_mb": 120}
    assert probe.read() == {"working_set_mb": 120, "peak_mb": 820}
    assert probe.read() == {"working_set_mb": 120, "peak_mb": 120}


def test_where_the_peak_is_not_known_there_is_none(
    processes: Processes, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    assert MemoryProbe(family).read() == {"working_set_mb": 0}


# ---------------------------------------------------------------- CPU


def percents(
    processes: Processes, family: Family, clock: Clock, *seconds: dict[int, Any], cpus: int = 2
) -> list[float | None]:
    """What is read with those CPU times, a second between two."""
    probe = CpuProbe(family, lambda: cpus, clock)
    read: list[float | None] = []
    for times in seconds:
        for pid in [pid for pid in processes.all if pid not in times]:
            processes.end(pid)
        for pid, figures in times.items():
            process = processes.all.get(pid) or processes.start(pid)
            process.times = Times(*figures)
        read.append(probe.read().get("cpu_percent"))
        clock.time += 1
    return read


def test_cpu_is_a_share_of_the_usable_ones_and_unknown_at_first(
    processes: Processes, family: Family, clock: Clock
) -> None:
    read = percents(
        processes, family, clock, {1: (50, 7, 0, 0)}, {1: (50.5, 7.5, 0, 0)}, {1: (50.5, 7.5, 0, 0)}
    )
    assert read == [None, 50, 0]


def test_usable_cpus_count(processes: Processes, family: Family, clock: Clock) -> None:
    times = {1: (0, 0, 0, 0)}, {1: (1, 0, 0, 0)}
    assert percents(processes, family, clock, *times, cpus=4)[1] == 25
    probe = CpuProbe(family)
    assert probe._cpus == usable_cpus()


def test_children_count_from_their_first_second_on(
    processes: Processes, family: Family, clock: Clock
) -> None:
    read = percents(
        processes,
        family,
        clock,
        {1: (5, 0, 0, 0)},
        {1: (5, 0, 0, 0), 2: (0.5, 0.1, 0, 0)},
        {1: (5, 0, 0, 0), 2: (1.5, 0.1, 0, 0)},
    )
    assert read == [None, pytest.approx(30), pytest.approx(50)]


def test_those_that_were_there_before_begin_at_nothing(
    processes: Processes, family: Family, clock: Clock
) -> None:
    times = {1: (5, 0, 0, 0), 2: (500, 0, 0, 0)}
    assert percents(processes, family, clock, times, times) == [None, 0]


def test_what_was_reaped_is_not_counted_twice(
    processes: Processes, family: Family, clock: Clock
) -> None:
    read = percents(
        processes,
        family,
        clock,
        {1: (0, 0, 0, 0), 2: (10, 0, 0, 0)},
        {1: (0, 0, 0, 0), 2: (10.6, 0, 0, 0)},
        {1: (0, 0, 10.8, 0)},  # it lived on for 0.2, and has been waited for
    )
    assert read == [None, pytest.approx(30), pytest.approx(10)]


def test_one_that_came_and_went_unseen_counts(
    processes: Processes, family: Family, clock: Clock
) -> None:
    read = percents(processes, family, clock, {1: (0, 0, 3, 0)}, {1: (0, 0, 3.5, 0.5)})
    assert read == [None, 50]


def test_one_that_vanished_and_was_not_reaped_takes_nothing_back(
    processes: Processes, family: Family, clock: Clock
) -> None:
    read = percents(
        processes,
        family,
        clock,
        {1: (0, 0, 0, 0), 2: (10, 0, 0, 0)},
        {1: (0.4, 0, 0, 0)},
    )
    assert read == [None, pytest.approx(20)]


def test_there_is_no_more_than_all(processes: Processes, family: Family, clock: Clock) -> None:
    """A child that is seen late, or adopted, has used what it has before."""
    read = percents(
        processes, family, clock, {1: (0, 0, 0, 0)}, {1: (0, 0, 0, 0), 2: (1000, 0, 0, 0)}
    )
    assert read == [None, 100]


# ---------------------------------------------------------------- I/O


def test_io_a_second(processes: Processes, family: Family, clock: Clock) -> None:
    probe = IoProbe(family, clock)
    processes.own.io = Io(1000, 500)
    assert probe.read() == {}
    clock.time += 1
    processes.own.io = Io(1100, 500)
    child = processes.start(2)
    child.io = Io(0, 50)
    assert probe.read() == {"io": {"read": 100, "write": 50}}
    clock.time += 1
    processes.end(2)
    assert probe.read() == {"io": {"read": 0, "write": 0}}


def test_a_platform_without_io_counters(
    processes: Processes, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(FakeProcess, "io_counters")
    assert IoProbe(family).read() == {}


# ---------------------------------------------------------------- this machine


def test_the_host() -> None:
    host = HostProbe().read()["host"]
    assert host.is_host
    assert 0 < host.used_mb < host.limit_mb


def test_this_machine_is_read_without_a_warning() -> None:
    read = Figures()
    for probe in probes():
        assert probe.name
        read.update(probe.read())
    assert read["working_set_mb"] > 1
    assert "cpu_percent" not in read  # it takes a second to tell


CHILD = "import sys; held = bytearray(50 * 2**20); print(flush=True); sys.stdin.read()"


def test_a_real_child_is_seen_until_it_has_gone() -> None:
    command = [sys.executable, "-c", CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        rss = Family().measure(lambda process: process.memory_info().rss)
        assert [rss[process] > 50 * MB for process in rss if process.pid == child.pid] == [True]
    pids = {process.pid for process in Family().measure(lambda process: process)}
    assert child.pid not in pids


async def test_a_sampler_reads_this_machine_unless_told_otherwise() -> None:
    run: Any = current_run()
    told = []

    def listener(reading: Any) -> float:
        told.append(reading)
        return 1.0

    stop = current_sampler(run).subscribe(listener)
    assert told[0].working_set_mb > 1
    assert told[0].host is not None
    stop()
    assert not run.sampler.is_running
