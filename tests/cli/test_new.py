"""`new` as a verb: what it wrote, and what it refuses. What it writes is tested in tests/test_new.py."""

from tests.plan.test_mistakes import assert_mistake, snapshot


def test_a_recipe_and_a_package(here, mmalign):
    assert mmalign("new", "recipe", "mine").out == "mine.yaml\n"
    assert mmalign("plan", "mine.yaml").code == 0
    result = mmalign("new", "objective", "my-loss", "parts")
    assert result.out.splitlines() == [f"parts/my-loss/{name}" for name in
                                     ("pyproject.toml", "my_loss.py", "test_my_loss.py")]  # fmt: skip
    assert (here / "parts/my-loss/my_loss.py").exists()


def test_mistakes(here, mmalign):
    mmalign("new", "recipe", "mine")
    before = snapshot(here)
    assert_mistake(mmalign("new", "adaptor", "x"), "nothing to start from for 'adaptor'", "", "did you mean 'adapter'?")
    assert_mistake(mmalign("new", "adapter", "My Part"), "'My Part' cannot be a name here", "", "small letters")
    assert_mistake(mmalign("new", "recipe", "mine"), "mine.yaml is there already", "mine.yaml", "another DIR")
    result = mmalign("new", "recipe", "x", "--base", "quickstrat")
    assert_mistake(result, "no recipe 'quickstrat' to start from", "", "did you mean 'quickstart'?")
    result = mmalign("new", "recipe", "x", "mine.yaml")
    assert_mistake(result, "File exists", "mine.yaml", "check the path, the rights to it and the space left")
    assert snapshot(here) == before
