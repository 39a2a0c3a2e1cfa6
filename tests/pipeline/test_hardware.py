"""What a stage's record says of the machine it ran on."""

import platform
import sys
from types import SimpleNamespace

import pytest

from mmalign.pipeline import hardware


def test_this_machine():
    about = hardware.used()
    assert (about["machine"], about["python"]) == (platform.machine(), platform.python_version())
    assert int(about["cores"]) >= 1
    assert all(type(value) is str and value for value in about.values())


def test_gpus_are_counted_by_name(monkeypatch):
    names = ["NVIDIA H200", "NVIDIA H200", "NVIDIA L4"]
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: len(names), get_device_name=names.__getitem__
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert hardware._gpus() == "2 x NVIDIA H200, 1 x NVIDIA L4"
    cuda.is_available = lambda: False
    assert hardware._gpus() == ""
    monkeypatch.delitem(sys.modules, "torch")
    assert hardware._gpus() == ""


def test_a_system_that_does_not_tell_its_processor(monkeypatch):
    monkeypatch.setattr(hardware, "Path", lambda name: SimpleNamespace(read_text=lambda **_: "flags\t: a b\n"))
    assert hardware._cpu() == ""


@pytest.mark.parametrize(
    ("gpus", "told"),
    [
        (["8 x A", "8 x A"], "8 x A on 2 hosts"),
        (["8 x A", "4 x B", "8 x A"], "8 x A on 2 hosts, 4 x B on 1"),
        (["", ""], None),
    ],
)
def test_gpus_of_several_hosts(gpus, told):
    assert hardware.of_hosts(gpus) == hardware.used() | ({"gpus": told} if told else {})
    assert hardware.of_hosts(gpus[:1]) == hardware.used()
