"""`python -m tests.scale`: writes the tables of docs/scale.md."""

from tests.scale.page import PAGE, filled

PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
