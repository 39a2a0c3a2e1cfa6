"""Open brackets, beside PyYAML's events as the slow reference: words, quotes, texts and comments open nothing."""

import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mmalign.io.brackets import deeper_than, opened

NASTY = st.text("ab [](){}'\"#:,-?|>&*!%\n\\", max_size=20)
VALUES = st.recursive(
    NASTY | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NASTY, inner, max_size=3),
    max_leaves=12,
)


def by_events(text):
    """What `opened` tells, by PyYAML's parser."""
    found, styles = [], []
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            styles.append(bool(event.flow_style))
            if event.flow_style:
                found.append((sum(styles), event.start_mark.line + 1))
        elif isinstance(event, yaml.CollectionEndEvent):
            styles.pop()
    return found


@settings(max_examples=400, deadline=None)
@given(
    VALUES,
    st.sampled_from([True, False, None]),
    st.sampled_from([None, "'", '"', "|", ">"]),
    st.sampled_from([10, 80]),
    st.sampled_from([2, 5]),
)
def test_what_pyyaml_writes(value, flow, style, width, indent):
    text = yaml.dump([value, {"after": [1]}], default_flow_style=flow, default_style=style, width=width, indent=indent)
    assert list(opened(text)) == by_events(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, [2, {b: [3]}]]\nc: [4]\n",
        "a: it's [[\nb: [1]\n",
        "a: 'it''s [['\nb: [1]\n",
        'a: "[[ \\" [["\nb: [1]\n',
        'a: "[[\n  [["\nb: [1]\n',
        "a: word # [[ : x\nb: [1] # [[\n# [[\nc: [1]\n",
        "a: word\n  [[ goes on\n\n  [[ and on\nb: [1]\n",
        "a:b [[\n",
        "a: &x [1]\nb: !!seq [1]\nc: *x\n",
        "a: &x\n  b: [1]\n",
        "a: |\n  [[\n\n   [[\nb: [1]\n",
        "a: |2\n    [[\n  [[\nb: >-\n  '\nc: [1]\n",
        "a: |\nb: [1]\n",
        "- - a: |\n      [[\n    b: [1]\n  - [2]\n",
        "- - |\n   [[\n  - [1]\n",
        "a:\n- |\n  [[\n- word\n  [[\n- [1]\nb: [1]\n",
        "? a\n: [1]\n",
        "'a [': [1]\n",
        "[it's, don't, 1]\n",
        "[a #[\n, 'b ]', \"]\", c#]\n",
        '{"a":[1],"b":"]","c":{"d":[]}}\n',
        "{a: b, c: [d\n  'e, f]}\n",
        "{url: http://x, b: [1]}\n",
        "--- [a]\n...\n",
        "%YAML 1.1\n--- \na: [1]\n",
        "word\n[[\n",
        "a: 1\r\nb: [1,\r[2]]\r\nc: 1\x85d: [1]\n",
        "\ufeffa: [1]\n",
    ],
)
def test_what_people_write(text):
    assert list(opened(text)) == by_events(text)
    assert by_events(text) or "[[" in text


def test_the_first_bracket_that_is_too_deep():
    text = "- [[]]\n- '[[['\n- [[\n[]]]\n- [[[]]]\n"
    assert [deeper_than(limit, text) for limit in (0, 1, 2, 3)] == [1, 1, 4, None]


@pytest.mark.parametrize(
    "piece", ["[", "{a: ", "[]", "- ", "'", "''", '"', "[a #", "a: |\n", "x\n", "a:", "#", "&", "\n"]
)
def test_the_time_is_linear(piece):
    """The same piece over and over: 40 times as often may take 400 times as long, not 1,600."""
    short, long = (_seconds(piece * count) for count in (2_500, 100_000))
    assert long < 400 * max(short, 1e-4)


def _seconds(text):
    began = time.perf_counter()
    for _ in opened(text):
        pass
    return time.perf_counter() - began
