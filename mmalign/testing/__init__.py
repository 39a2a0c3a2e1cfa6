"""What every part must do, alone and in a model, as checks that the author of a part runs in their own tests.

    def test_mine(tmp_path):
        check_adapter(MyAdapter)
        mine = {"adapter": Card("mine", "my_package.MyAdapter")}
        for family in small.LLMS:
            llm = {"llm": small.llm_card(family, tmp_path)}
            check_model({**small.encoder("siglip", tmp_path), **llm, **mine}, tmp_path / family / "saved")

One check a family (a benchmark that asks, and a probe that looks, have one each), and `check_model` for parts put
together. Each raises an AssertionError that says what was expected. `mmalign new KIND NAME` writes a part and a test
that calls its check.
"""

from mmalign.testing.adapters import check_adapter
from mmalign.testing.benchmarks import check_benchmark, check_probe
from mmalign.testing.data import check_data
from mmalign.testing.labels import check_labels
from mmalign.testing.llms import check_llm
from mmalign.testing.model import check_model
from mmalign.testing.objectives import check_objective
from mmalign.testing.vision import check_vision

__all__ = [
    "check_adapter",
    "check_benchmark",
    "check_data",
    "check_labels",
    "check_llm",
    "check_model",
    "check_objective",
    "check_probe",
    "check_vision",
]
