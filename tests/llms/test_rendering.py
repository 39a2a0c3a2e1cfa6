"""Templates in a process of their own: the same text as transformers', and an end to those that have none."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from mmalign.errors import DataError
from mmalign.llms.rendering import Renderer, render, renderer

TEMPLATES = sorted((Path(__file__).parents[2] / "mmalign" / "llms" / "templates").glob("*.jinja"))
TURNS = [{"role": "user", "content": "Is there a ‹cat›?\n\x1b"}, {"role": "assistant", "content": "Yes \U0001f408."}]
WORDS = {"bos_token": "<s>", "eos_token": "</s>", "add_generation_prompt": False}
SHORT = {"MMALIGN_TEMPLATE_SECONDS": "1", "MMALIGN_TEMPLATE_BYTES": "200M", "MMALIGN_TEMPLATE_CHARACTERS": "1M"}


@pytest.fixture
def own(monkeypatch):
    """A process with small limits."""
    for name, value in SHORT.items():
        monkeypatch.setenv(name, value)
    mine = Renderer()
    yield mine
    mine.stop()


@pytest.mark.parametrize("place", TEMPLATES, ids=lambda place: place.stem)
def test_the_same_as_in_this_process(place):
    template = place.read_text(encoding="utf-8")
    texts, spans = render_jinja_template([TURNS], chat_template=template, return_assistant_tokens_mask=True, **WORDS)
    assert renderer.render(template, TURNS, WORDS, "x") == render(template, TURNS, WORDS, "x") == (texts[0], spans[0])
    assert spans[0]


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
SLOW = {
    "loops": ENDLESS,
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursion": "{% for x in [1, 2] recursive %}{% if loop.depth < 60 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
    "comparison": "{% set n = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}"
    "{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}",
    "words": "{{ lipsum(n=99999999, html=False)|length }}",
}


@pytest.mark.parametrize("template", SLOW.values(), ids=SLOW)
def test_a_template_that_does_not_end(own, template):
    with pytest.raises(DataError, match="chat template of x does not end within 1 seconds") as caught:
        own.render(template, TURNS, WORDS, "x")
    assert caught.value.fix.startswith("MMALIGN_TEMPLATE_SECONDS=2, ")
    assert own.render("{{ messages[0].role }}", TURNS, WORDS, "x")[0] == "user"  # a new process does its work


LARGE = {
    "a product": "{{ 'x' * 10 ** 9 }}",
    "a width": "{{ '%1000000000d' % 1 }}",
    "a format": "{{ '{:>1000000000}'.format(1) }}",
    "a filter": "{{ 'x'|center(10 ** 9) }}",
    "doubling": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "a list": "{{ ([1] * 10 ** 9)|length }}",
    "nesting": "{% set n = namespace(a=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a }}",
    "replacing": "{{ ('x' * 10 ** 5).replace('x', 'y' * 10 ** 5) }}",
}


@pytest.mark.parametrize("template", LARGE.values(), ids=LARGE)
def test_a_template_that_fills_the_memory(own, template):
    with pytest.raises(DataError, match="takes too much memory|refuses these turns: OverflowError|does not end"):
        own.render(template, TURNS, WORDS, "x")
    assert own.render("{{ messages[0].role }}", TURNS, WORDS, "x")[0] == "user"


def test_a_template_that_writes_too_much(own):
    with pytest.raises(DataError, match="chat template of x writes more than 1,048,576 characters") as caught:
        own.render("{{ 'x' * 2000000 }}", TURNS, WORDS, "x")
    assert caught.value.fix.startswith("MMALIGN_TEMPLATE_CHARACTERS=")
    with pytest.raises(DataError, match="has more than 1,048,576 characters"):
        own.render("x" * 2_000_000, TURNS, WORDS, "x")


RAISING = {
    "{{ raise_exception('no system turns') }}": "refuses these turns: no system turns",
    "{{ 1 // 0 }}": "refuses these turns: ZeroDivisionError",
    "{{ messages[0].content.__class__.__mro__ }}": "refuses these turns: access to attribute",
    "{{ none.x.y }}": "refuses these turns: 'None' has no attribute 'x'",
    "{% if %}": "refuses these turns: Expected an expression",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "calls itself without an end",
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}": "calls itself without an end",
    "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}": "calls itself without an end",
    "{{ messages.append(1) }}": "refuses these turns",
    "{% include '/etc/passwd' %}": "refuses these turns",
}


@pytest.mark.parametrize(("template", "said"), RAISING.items(), ids=[text[:20] for text in RAISING])
def test_a_template_that_raises(template, said):
    with pytest.raises(DataError) as caught:
        renderer.render(template, TURNS, WORDS, "x")
    assert f"the chat template of x {said}" in caught.value.what


def test_only_templates_of_mmalign_are_rendered_here(monkeypatch):
    monkeypatch.setattr("transformers.utils.chat_template_utils.render_jinja_template", None)
    assert render("{{ messages[0].role }}", TURNS, WORDS, "x")[0] == "user"
    with pytest.raises(TypeError):
        render(TEMPLATES[0].read_text(encoding="utf-8"), TURNS, WORDS, "x")


def test_a_template_of_600_pages():
    page = "{% if messages[0].role == 'r' %}Say so.{% endif %}\n" + f"{'A rule of the house. ' * 4}\n" * 30
    template = page * 600 + "{{ messages[0].role }}"
    assert len(template) > 1_500_000
    assert renderer.render(template, TURNS, WORDS, "x")[0].endswith("house. \nuser")


def test_many_threads_at_once():
    def one(number):
        return renderer.render(f"{{{{ messages[0].content }}}} {number % 7}", [{"content": str(number)}], {}, "x")[0]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(200))) == [f"{number} {number % 7}" for number in range(200)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_process_that_was_forked_has_its_own():
    """Also where another thread was rendering at that moment: the lock it held is nobody's in there."""
    renderer.render("{{ 1 }}", [], {}, "x")
    before = renderer.process
    queue = multiprocessing.get_context("fork").SimpleQueue()

    def inside():
        queue.put((renderer.render("{{ 2 }}", [], {}, "x")[0], renderer.process.pid))
        renderer.stop()

    child = multiprocessing.get_context("fork").Process(target=inside)
    with renderer.lock:
        child.start()
        child.join(60)
    if child.is_alive():
        child.kill()
        pytest.fail("it waits for a lock that nobody will give back")
    text, pid = queue.get()
    assert (text, before is renderer.process) == ("2", True)
    assert pid != before.pid
    assert renderer.render("{{ 3 }}", [], {}, "x")[0] == "3"
