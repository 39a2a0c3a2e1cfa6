"""How much memory is free: the least of what the machine and every control group leave."""

import pytest

from mmalign.training.memory import free_bytes

GIB = 1 << 30


def written(place, **files):
    place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (place / name.replace("__", ".")).write_text(text)


@pytest.fixture
def machine(tmp_path):
    """A machine with 8 GiB free; its processes are in the group /job/step of both kinds of control groups."""
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    written(proc, meminfo=f"MemTotal: {16 << 20} kB\nMemAvailable: {8 << 20} kB\n")
    written(proc / "self", cgroup="4:memory:/job/step\n1:name=systemd:/\n0::/job/step\n")
    groups.mkdir()
    return proc, groups


def test_of_a_machine_without_limits(machine):
    assert free_bytes(*machine) == 8 * GIB


def test_of_this_machine():
    assert 0 < free_bytes() < 1 << 50


def test_of_a_system_that_does_not_say(tmp_path):
    assert free_bytes(tmp_path, tmp_path) == 0


@pytest.mark.parametrize("of", ["job/step", "job"])  # its own, or of all of the job
def test_a_limit_of_a_group_counts_and_pages_of_files_are_free(machine, of):
    stat = f"anon 5\nactive_file {GIB}\ninactive_file {GIB // 2}\n"
    written(machine[1] / of, memory__max=f"{4 * GIB}\n", memory__current=f"{3 * GIB}\n", memory__stat=stat)
    assert free_bytes(*machine) == 2.5 * GIB


def test_a_limit_of_the_older_kind(machine):
    stat = f"active_file 7\ntotal_active_file {GIB}\ntotal_inactive_file 0\n"
    group = machine[1] / "memory" / "job"
    written(group, memory__limit_in_bytes=f"{3 * GIB}", memory__usage_in_bytes=f"{2 * GIB}", memory__stat=stat)
    assert free_bytes(*machine) == 2 * GIB


def test_a_group_without_a_limit(machine):
    written(machine[1] / "job" / "step", memory__max="max\n", memory__current="5\n")
    assert free_bytes(*machine) == 8 * GIB


def test_a_group_above_its_limit_has_nothing(machine):
    written(machine[1] / "job" / "step", memory__max=f"{GIB}\n", memory__current=f"{2 * GIB}\n")
    assert free_bytes(*machine) == 0
