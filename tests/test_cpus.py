"""usable_cpus(): affinity and the quotas of cgroups, on made-up machines."""

import math
import os
from pathlib import Path

import pytest

from trio_parallel_steps import _cpus, usable_cpus
from trio_parallel_steps._cpus import cgroup_quota


class Machine:
    """A /sys/fs/cgroup and a /proc/self/cgroup of one's own."""

    def __init__(self, root: Path) -> None:
        self.cgroups = root / "cgroup"
        self.own = root / "own"
        self.cgroups.mkdir()

    def is_in(self, *lines: str) -> None:
        self.own.write_text("".join(f"{line}\n" for line in lines))

    def v2(self, group: str, text: str) -> None:
        path = self.cgroups / group
        path.mkdir(parents=True, exist_ok=True)
        (path / "cpu.max").write_text(text)

    def v1(self, group: str, quota: object, period: object = 100000) -> None:
        path = self.cgroups / group
        path.mkdir(parents=True, exist_ok=True)
        (path / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (path / "cpu.cfs_period_us").write_text(f"{period}\n")

    def quota(self) -> float:
        return cgroup_quota(self.cgroups, self.own)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# ---------------------------------------------------------------- version 2


def test_v2_quota_over_period(machine: Machine) -> None:
    machine.is_in("0::/user/me")
    machine.v2("user/me", "150000 100000\n")
    assert machine.quota() == 1.5


def test_v2_max_is_no_limit(machine: Machine) -> None:
    machine.is_in("0::/user/me")
    machine.v2("user/me", "max 100000\n")
    assert machine.quota() == math.inf


def test_v2_the_tightest_ancestor_counts(machine: Machine) -> None:
    machine.is_in("0::/a/b/c")
    machine.v2("a/b/c", "max 100000\n")
    machine.v2("a/b", "50000 10000\n")
    machine.v2("a", "200000 100000\n")
    machine.v2("", "max 100000\n")
    assert machine.quota() == 2


def test_v2_a_sibling_does_not_count(machine: Machine) -> None:
    machine.is_in("0::/a/mine")
    machine.v2("a/mine", "300000 100000\n")
    machine.v2("a/other", "100000 100000\n")
    assert machine.quota() == 3


def test_v2_in_a_container_the_path_is_the_hosts_and_the_root_of_the_mount_is_ours(
    machine: Machine,
) -> None:
    machine.is_in("0::/system.slice/docker-0123.scope")
    machine.v2("", "200000 100000\n")
    assert machine.quota() == 2


def test_v2_at_the_root(machine: Machine) -> None:
    machine.is_in("0::/")
    machine.v2("", "100000 100000\n")
    assert machine.quota() == 1


def test_v2_outside_of_the_namespace(machine: Machine) -> None:
    machine.is_in("0::/../../elsewhere")
    machine.v2("", "400000 100000\n")
    assert machine.quota() == 4


def test_v2_a_path_may_hold_colons(machine: Machine) -> None:
    machine.is_in("0::/a:b/c")
    machine.v2("a:b/c", "100000 100000\n")
    assert machine.quota() == 1


# ---------------------------------------------------------------- version 1


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_v1_quota_over_period(machine: Machine, mount: str) -> None:
    machine.is_in("4:memory:/mine", "3:cpu,cpuacct:/mine", "1:name=systemd:/mine")
    machine.v1(f"{mount}/mine", 250000)
    assert machine.quota() == 2.5


def test_v1_minus_one_is_no_limit(machine: Machine) -> None:
    machine.is_in("3:cpu:/mine")
    machine.v1("cpu/mine", -1)
    assert machine.quota() == math.inf


def test_v1_the_tightest_ancestor_counts(machine: Machine) -> None:
    machine.is_in("3:cpu:/a/b")
    machine.v1("cpu/a/b", 800000)
    machine.v1("cpu/a", 300000)
    machine.v1("cpu", -1)
    assert machine.quota() == 3


def test_v1_in_a_container_the_root_of_the_mount_is_ours(machine: Machine) -> None:
    machine.is_in("3:cpu,cpuacct:/docker/0123")
    machine.v1("cpu,cpuacct", 50000)
    assert machine.quota() == 0.5


def test_v1_cpuset_and_cpuacct_alone_are_not_cpu(machine: Machine) -> None:
    machine.is_in("3:cpuset:/mine", "2:cpuacct:/mine")
    machine.v1("cpuset/mine", 100000)
    machine.v1("cpuacct/mine", 100000)
    machine.v1("cpu/mine", 100000)
    assert machine.quota() == math.inf


def test_both_versions_at_once_the_tighter_counts(machine: Machine) -> None:
    machine.is_in("3:cpu:/mine", "0::/mine")
    machine.v1("cpu/mine", 300000)
    machine.v2("mine", "200000 100000\n")
    assert machine.quota() == 2


# ---------------------------------------------------------------- what can't be read limits nothing


def test_without_cgroups_there_is_no_limit(machine: Machine) -> None:
    assert machine.quota() == math.inf
    machine.is_in("0::/gone", "3:cpu:/gone")
    assert machine.quota() == math.inf


@pytest.mark.parametrize("text", ["", "max", "100000", "a b", "100000 0", "100000 100000 1"])
def test_v2_nonsense_limits_nothing(machine: Machine, text: str) -> None:
    machine.is_in("0::/mine")
    machine.v2("mine", text)
    assert machine.quota() == math.inf


@pytest.mark.parametrize(("quota", "period"), [("", 1), ("a", 1), (1, ""), (1, 0), (0, 1)])
def test_v1_nonsense_limits_nothing(machine: Machine, quota: object, period: object) -> None:
    machine.is_in("3:cpu:/mine")
    machine.v1("cpu/mine", quota, period)
    assert machine.quota() == math.inf


@pytest.mark.parametrize("line", ["", "nonsense", "0:", "a:b"])
def test_a_line_that_is_none_limits_nothing(machine: Machine, line: str) -> None:
    machine.is_in(line, "0::/mine")
    machine.v2("mine", "200000 100000\n")
    assert machine.quota() == 2


# ---------------------------------------------------------------- together


@pytest.mark.parametrize(
    ("affinity", "quota", "cpus"),
    [
        (8, "max 100000", 8),
        (8, "150000 100000", 2),
        (8, "50000 100000", 1),
        (8, "1000 100000", 1),
        (8, "1600000 100000", 8),
        (1, "400000 100000", 1),
        (4, "400000 100000", 4),
    ],
)
def test_usable_cpus_is_the_smaller_rounded_up_and_at_least_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, affinity: int, quota: str, cpus: int
) -> None:
    machine.is_in("0::/mine")
    machine.v2("mine", quota)
    monkeypatch.setattr(_cpus, "CGROUPS", machine.cgroups)
    monkeypatch.setattr(_cpus, "OWN_CGROUPS", machine.own)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)), raising=False)
    assert usable_cpus() == cpus
    assert type(usable_cpus()) is int


@pytest.mark.parametrize(("count", "cpus"), [(6, 6), (None, 1)])
def test_where_there_is_no_affinity_all_cpus_count(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, count: int | None, cpus: int
) -> None:
    monkeypatch.setattr(_cpus, "CGROUPS", machine.cgroups)
    monkeypatch.setattr(_cpus, "OWN_CGROUPS", machine.own)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert usable_cpus() == cpus
