"""`tests.speed isa`: the processes it starts read its variables, and its rows are those of the benchmarks, twice."""

import os
import subprocess
import sys

import pytest

from tests.speed import __main__ as speed
from tests.speed import isa, modules

SPEND = "import time\nwhile time.process_time() < 0.3: pass"


def test_each_process_is_limited_and_has_one_thread():
    told = "import os; print([os.environ.get(name) for name in ('OMP_NUM_THREADS', 'ONEDNN_MAX_CPU_ISA')])"
    said = [isa._run([sys.executable, "-c", told], variables) for variables in isa.LIMITED.values()]
    assert said == [f"['1', {os.environ.get('ONEDNN_MAX_CPU_ISA')!r}]\n", "['1', 'AVX2']\n"]


def test_what_a_process_spends_is_counted():
    assert 0.3 <= isa._spent(lambda: isa._run([sys.executable, "-c", SPEND], {})) < 3


def test_the_rows_are_those_of_the_benchmarks_in_both_ways(monkeypatch):
    printed = '{"topn": [[2.0], [4.0], 0.5, "ms"], "topn-memory": [[1.0], [1.0], 1.1, "MiB"]}'
    monkeypatch.setattr(isa, "BENCHMARKS", ("topn",))
    monkeypatch.setattr(isa, "_run", lambda line, variables: f"noise\n{printed}\n")
    monkeypatch.setattr(isa, "_quickstart", lambda variables: subprocess.run([sys.executable, "-c", SPEND], check=True))
    rows = isa.measure()
    assert list(rows) == ["topn, as it is", "topn, AVX2", "quickstart, AVX2"]
    assert rows["topn, AVX2"].ratio == rows["topn, AVX2"].target == 0.5
    assert rows["quickstart, AVX2"].ratio == pytest.approx(1, abs=0.9)


def test_it_runs_only_where_it_is_named(monkeypatch, capsys):
    known, asked = modules(), []
    for name, module in known.items():
        monkeypatch.setattr(module, "measure", lambda name=name: asked.append(name) or {})
    assert speed.main([]) == 0
    assert set(asked) == {*known} - {"isa"}
    assert speed.main(["isa"]) == 0
    assert asked[-1] == "isa"
    assert capsys.readouterr().out.startswith("name")
