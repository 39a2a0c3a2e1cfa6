"""The table of families in the docs says what the models say."""

from pathlib import Path

import pytest
from PIL import Image

from mmalign.integrations import declared, layouts
from tests.integrations import families
from tests.integrations.test_layouts import grey, shallow, tokens

PAGE = Path(__file__).parents[2] / "docs" / "vision-language-models.md"
ROWS = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
SIZE = (160, 80)


def row(family):
    model, processor = shallow(family)
    parts = declared.parts(model, processor)
    (all_QD,) = tokens(model, processor, [Image.fromarray(grey(*SIZE))])
    views, fixed = layouts.views(parts, SIZE, len(all_QD)), layouts.fixed(parts)
    lie = "not known"
    if views:
        lie = "all of it, and tiles" if len(views) > 1 else "one square" if fixed else "any size"
    return (
        f"| {family} | {f'always {fixed}' if fixed else 'by its size'} | {lie} | {'yes' if fixed and views else 'no'} |"
    )


@pytest.mark.parametrize(("line", "family"), zip(ROWS, [*families.FAMILIES, *families.MORE], strict=True))
def test_a_row(line, family):
    assert line == row(family)
