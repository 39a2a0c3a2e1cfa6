"""Whether a machine is known to lack instructions for bf16."""

import pytest

from mmalign.io import processor

X86 = "processor\t: 0\nflags\t\t: fpu sse2 avx2 {}\n\nprocessor\t: 1\nflags\t\t: fpu sse2 avx2 {}\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd {}\n"


@pytest.mark.parametrize(
    ("told", "isa", "lacks"),
    [
        (X86.format("fma", "fma"), "", True),
        (X86.format("avx512f avx512_vnni", "avx512f avx512_vnni"), "", True),
        (X86.format("avx512_bf16", "avx512_bf16"), "", False),
        (X86.format("amx_bf16", "amx_bf16"), "", False),
        (X86.format("amx_bf16", "amx_bf16"), "AVX2", True),
        (X86.format("amx_bf16", "amx_bf16"), "avx512_core", True),
        (X86.format("amx_bf16", "amx_bf16"), "AVX512_CORE_BF16", False),
        (ARM.format("bf16"), "", False),
        (ARM.format("crc32"), "", True),
        ("processor\t: 0\n", "", False),
    ],
)
def test_by_flags_and_what_onednn_may_use(tmp_path, monkeypatch, told, isa, lacks):
    monkeypatch.setattr(processor, "gpus", lambda: "none: nvidia-smi fails")
    monkeypatch.setattr(processor, "_amd", lambda: False)
    (tmp_path / "cpuinfo").write_text(told)
    assert processor.lacks_bf16(tmp_path / "cpuinfo", {"ONEDNN_MAX_CPU_ISA": isa} if isa else {}) is lacks


@pytest.mark.parametrize(("gpus", "amd"), [("H200, 143771 MiB", False), ("none", True)])
def test_with_a_gpu_the_cpu_does_not_matter(tmp_path, monkeypatch, gpus, amd):
    monkeypatch.setattr(processor, "gpus", lambda: gpus)
    monkeypatch.setattr(processor, "_amd", lambda: amd)
    (tmp_path / "cpuinfo").write_text(X86.format("fma", "fma"))
    assert not processor.lacks_bf16(tmp_path / "cpuinfo", {})


def test_where_no_file_tells_nothing_is_known(tmp_path):
    assert not processor.lacks_bf16(tmp_path / "cpuinfo", {})
