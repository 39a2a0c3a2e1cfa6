"""The explorer in a real browser: what a reader sees, points at, walks to by keys, searches, turns and saves."""

import json

import pytest

from mmalign.explore import Explorer, Pane, Picture, Truth, page
from mmalign.io.pictures import base64_png
from tests.browser import browser
from tests.explore.samples import WORDS, noise, one, pane, photographs, ranked

READY = "[...document.querySelectorAll('.mmx')].every(one => one.dataset.ready === 'yes')"
VIEW = "document.querySelector('.mmx').view"
FRAME = "new Promise(done => requestAnimationFrame(() => setTimeout(done)))"
TIP = "[...document.querySelectorAll('.mmx-tip')].filter(one => !one.hidden).map(one => one.innerText)"
TURNS = """(() => { const box = document.querySelector('.mmx input[type=range]'), took = [];
for (let layer = 0; layer < 32; layer++) { const began = performance.now(); box.value = layer;
box.dispatchEvent(new Event('input')); document.body.offsetHeight; took.push(performance.now() - began); }
return took; })()"""
CAUGHT = """Object.assign(window, { saved: [], blobs: [] });
URL.createObjectURL = blob => { blobs.push(blob); return 'blob:' + blobs.length; };
HTMLAnchorElement.prototype.click = function () { saved.push(this.download); };"""
LARGEST = """(() => { const box = document.querySelectorAll('.mmx input[type=range]')[1];
box.value = 5; box.dispatchEvent(new Event('input')); })()"""
OFFERED = """[...document.querySelectorAll('.mmx select')].slice(1)
.map(box => [...box.options].filter(one => !one.disabled).map(one => one.value))"""
UNNAMED = """[...document.querySelectorAll('.mmx select, .mmx input, .mmx button')]
.filter(one => !(one.labels?.length || one.innerText || one.ariaLabel)).length"""
WALKED = """(() => { const walked = [];
for (let step = 0; step < 576; step++) {
  const cell = document.activeElement;
  walked.push([cell.token, cell.getAttribute('aria-label')]);
  cell.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true }));
} return walked; })()"""
SPILL = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as own:
        yield own


@pytest.fixture
def shown(tab, tmp_path):
    """Open an explorer; at the end nothing has been complained of, and nothing fetched."""

    def show(*explorers, width=1400, dark=False):
        parts = [page.html(one, whole=number == 0) for number, one in enumerate(explorers)]
        (tmp_path / "x.html").write_text(parts[0].replace("</body>", "".join(parts[1:]) + "</body>"), "utf-8")
        tab.screen(width, dark=dark)
        tab.open(tmp_path / "x.html", READY)
        return tab

    yield show
    assert tab.said == []
    assert [url[:40] for url in tab.asked if not url.startswith(("file:", "data:", "blob:"))] == []


def milliseconds(tab, layers):
    """Of the processor, for a turn of the layer, to the layout: other tests run beside this one."""
    tab("Performance.enable", timeDomain="threadTicks")
    tab.do(TURNS)  # words are measured once
    before, _, after = busy(tab), tab.do(TURNS), busy(tab)
    return 1000 * (after - before) / layers


def busy(tab):
    """Seconds that the page has computed."""
    return next(one["value"] for one in tab("Performance.getMetrics")["metrics"] if one["name"] == "TaskDuration")


def choose(tab, number, value):
    """An option of the n-th choice."""
    box = f"document.querySelectorAll('.mmx select')[{number}]"
    tab.do(
        f"(() => {{ {box}.value = {json.dumps(value)}; {box}.dispatchEvent(new Event('change')); return {FRAME}; }})()"
    )


def find(tab, text):
    box = "document.querySelector('.mmx input[type=search]')"
    tab.do(f"{box}.value = {json.dumps(text)}; {box}.dispatchEvent(new Event('input'))")


def point(tab, token):
    cell = f"document.querySelectorAll('.mmx-cell')[{token}]"
    tab.do(f"{cell}.scrollIntoView({{block: 'center'}})")
    x, y = tab.do(
        f"(() => {{ const b = {cell}.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()"
    )
    tab.hover(x, y)
    tab.do(FRAME)


def lines(words):
    return [part for word, cosine in words for part in (word, f"{cosine:.3f}")]


@pytest.fixture(scope="module")
def photos():
    """Five photographs as a model of CLIP-L's grid and 32 layers might be shown them."""
    return Explorer([Picture(f"photo {n}", [pane(p, (24, 24), layers=32)]) for n, p in enumerate(photographs())])


@pytest.mark.parametrize("width", [375, 1400])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_word_of_photographs_is_read_by_pointer_and_keys(shown, photos, width, dark):
    tab = shown(photos, width=width, dark=dark)
    assert tab.do(SPILL) <= 0
    own = photos.pictures[0].panes[0]
    for token in (0, 23, 300, 575):
        point(tab, token)
        (tip,) = tab.do(TIP)
        assert tip.split("\n") == lines(own.layers[0][token])
    tab.hover(1, 1)
    tab.do("document.querySelectorAll('.mmx-cell')[0].focus()")
    tab.do(f"{VIEW}.turn(31)")
    walked = tab.do(WALKED)
    assert [token for token, _ in walked] == list(range(576))
    for token, label in walked:
        words = ", ".join(f"{word} {cosine:.3f}" for word, cosine in own.layers[31][token])
        assert label == f"row {token // 24 + 1}, column {token % 24 + 1}: {words}"


def test_the_slider_turns_the_layer_in_a_tenth_of_a_second(shown, photos):
    tab = shown(photos)
    assert 0 < milliseconds(tab, 32) < 100
    assert tab.do(f"{VIEW}.panes[0].now") == 31
    for picture in range(5):
        choose(tab, 0, str(picture))
        tab.do(FRAME)
        words = photos.pictures[picture].panes[0].layers[31]
        assert tab.do(f"{VIEW}.panes[0].cells.map(cell => cell.word)") == [own[0][0] for own in words]


def test_words_that_stand_on_patches_fit_and_can_be_read(shown, photos):
    tab = shown(photos)
    sizes = tab.do("""[...document.querySelectorAll('.mmx-cell span:not([hidden])')].map(text => {
      const a = text.getBoundingClientRect(), b = text.parentNode.getBoundingClientRect();
      return [parseFloat(getComputedStyle(text).fontSize), a.left - b.left, b.right - a.right, a.top - b.top]; })""")
    assert len(sizes) > 100
    assert min(size for size, *_ in sizes) >= 9
    assert min(min(rest) for _, *rest in sizes) > -1
    tab.do(LARGEST)
    assert tab.do("document.querySelectorAll('.mmx-cell span:not([hidden])').length") == 576  # all, five times as large


def test_keys_walk_the_grid_and_turn_layers(shown):
    tab = shown(one((5, 3)))
    tab.do("document.querySelector('.mmx-cell').focus()")
    at = []
    for key in (
        "ArrowRight",
        "ArrowDown",
        "ArrowDown",
        "ArrowLeft",
        "End",
        "Home",
        "ArrowUp",
        "ArrowRight",
        "ArrowUp",
        "ArrowUp",
    ):
        tab.press(key)
        at.append(tab.do("document.activeElement.token"))
    assert at == [1, 4, 7, 6, 8, 6, 3, 4, 1, 1]
    layers = [tab.press(key) or tab.do(f"{VIEW}.layer") for key in ("PageDown", "PageDown", "PageDown", "PageUp")]
    assert layers == [1, 2, 2, 1]
    assert len(tab.do(TIP)) == 1
    tab.press("Escape")
    assert tab.do(TIP) == []


def test_all_layers_of_a_patch_at_once(shown):
    explorer = one((5, 3), layers=32)
    tab = shown(explorer)
    point(tab, 7)
    own = explorer.pictures[0].panes[0]
    rows = tab.do(
        "[...document.querySelectorAll('.mmx-deep tbody tr')].map(row => [...row.children].map(cell => cell.innerText))"
    )
    assert rows == [
        [str(n), f"{own.layers[n][7][0][1]:.3f}", *(word for word, _ in own.layers[n][7])] for n in range(32)
    ]
    assert tab.do("document.querySelectorAll('.mmx-strip button').length") == 32
    tab.do("document.querySelectorAll('.mmx-strip button')[20].click()")
    assert tab.do(f"{VIEW}.layer") == 20


def test_tokens_that_are_no_patches(shown):
    explorer = one(None)
    tab = shown(explorer)
    point(tab, 9)
    assert tab.do(TIP)[0].split("\n") == lines(explorer.pictures[0].panes[0].layers[0][9])
    assert tab.do("document.querySelector('.mmx-patch h3').innerText") == "token 10"
    assert "no patches" in tab.do("document.querySelector('.mmx-panes').innerText")
    assert tab.do("document.querySelector('.mmx-panes img').alt").startswith("the picture p")


def test_two_thousand_eight_hundred_and_eighty_tokens(shown):
    tab = shown(one((48, 60)))
    assert tab.do("document.querySelectorAll('.mmx-cell').length") == 2880
    assert tab.do("document.querySelectorAll('.mmx-cell[aria-label]').length") == 2880


def test_padding_is_hatched_said_and_has_no_word_on_it(shown):
    tab = shown(one((5, 3), seen=[token >= 3 for token in range(15)]))
    assert tab.do("document.querySelectorAll('.mmx-pad').length") == 3
    assert tab.do(f"{VIEW}.panes[0].cells.slice(0, 4).map(cell => cell.word !== '')") == [False] * 3 + [True]
    assert "padding" in tab.do("document.querySelector('.mmx-legend').innerText")
    point(tab, 1)
    assert tab.do(TIP)[0].startswith("padding\n")


def test_a_word_is_found(shown):
    words = {0: [[("cat", 0.4), ("dog", 0.3)], [("sky", 0.4), ("Cats", 0.2)], [("sun", 0.1)]], 1: [[("sky", 0.1)]] * 3}
    tab = shown(Explorer([Picture("p", [Pane("m", base64_png(noise(8)), (1, 3), words)])]))
    find(tab, "cat")
    assert tab.do("document.querySelector('.mmx-status').innerText") == (
        "m: “cat” is near 2 of 3 patches here, and near most at layer 0: 2"
    )
    marks = "[...document.querySelectorAll('.mmx-cell')].map(cell => cell.classList.contains('mmx-hit'))"
    assert tab.do(marks) == [True, True, False]
    tab.do(f"{VIEW}.turn(1)")
    assert tab.do(marks) == [False] * 3
    find(tab, "")
    assert tab.do("document.querySelectorAll('.mmx-dim, .mmx-hit').length") == 0


def judged(image, name, right):
    truth = Truth([("cat", "red"), ("sky",), ()], [True, True, None], {0: right, 1: [False, False, None]})
    return Pane(name, base64_png(image), (1, 3), {0: ranked(3, 2), 1: ranked(3, 2)}, truth=truth)


def test_two_models_side_by_side_right_and_wrong(shown):
    image = noise(32)
    panes = [judged(image, "base", [True, False, None]), judged(image, "sea", [True, True, None])]
    tab = shown(Explorer([Picture("p", panes, [("question", "What?"), ("base answers", "a cat")])]))
    choose(tab, 2, "truth")
    colours = tab.do("[...document.querySelectorAll('.mmx-cell')].map(cell => cell.style.backgroundColor.slice(0, 14))")
    blue, orange = "rgba(0, 114, 1", "rgba(230, 120,"
    assert colours == [blue, orange, "", blue, blue, ""]
    captions = tab.do("[...document.querySelectorAll('.mmx-pane figcaption')].map(one => one.innerText)")
    assert "base layer 0" in captions[0]
    assert "object patches right: 50.00 % (1 of 2)" in captions[0]
    assert "object patches right: 100.00 % (2 of 2)" in captions[1]
    point(tab, 0)  # of the first pane: the other shows the same patch
    assert [tip.split("\n") for tip in tab.do(TIP)] == [lines(own.layers[0][0]) for own in panes]
    panel = tab.do("document.querySelector('.mmx-patch').innerText")
    assert panel.count("true here: cat, red (object)") == 2
    choose(tab, 1, "truth")
    assert tab.do(f"{VIEW}.panes[0].cells.map(cell => cell.word)") == ["cat, red", "sky", ""]
    assert tab.do("document.querySelector('.mmx-texts').innerText").split("\n") == [
        "question",
        "What?",
        "base answers",
        "a cat",
    ]


def test_labels_and_attention_lie_over_the_picture(shown):
    labels = [[("star", 0.3), ("red", 0.1)]] + [[]] * 14
    tab = shown(one((5, 3), labels=labels, attention=[number / 105 for number in range(15)]))
    choose(tab, 1, "labels")
    assert tab.do(f"{VIEW}.panes[0].cells.map(cell => cell.word)") == ["star"] + [""] * 14
    choose(tab, 2, "attention")
    first, last = tab.do("[0, 14].map(n => document.querySelectorAll('.mmx-cell')[n].style.backgroundColor)")
    assert (first, last) == ("rgba(48, 18, 90, 0.7)", "rgba(250, 230, 60, 0.7)")
    point(tab, 0)
    assert "labels: star 0.300, red 0.100" in tab.do("document.querySelector('.mmx-patch').innerText")


def test_labels_alone_are_the_words(shown):
    labels = [[("star", 0.3), ("red", 0.1)], [], [("sky", 0.2)]]
    own = Pane("", base64_png(noise(8)), (1, 3), {}, labels=labels)
    tab = shown(Explorer([Picture("p", [own])], measure="score"))
    assert tab.do(f"{VIEW}.panes[0].cells.map(cell => cell.word)") == ["star", "", "sky"]
    point(tab, 0)
    assert tab.do(TIP)[0].split("\n") == ["star", "0.300", "red", "0.100"]
    assert "score 0.200 to 0.300" in tab.do("document.querySelector('.mmx-legend').innerText")
    find(tab, "s")
    assert "is near 2 of 3 patches" in tab.do("document.querySelector('.mmx-status').innerText")


def test_what_no_pane_has_is_not_offered(shown):
    tab = shown(one())
    assert tab.do(OFFERED) == [["words", "nothing"], ["cosine", "word", "nothing"]]


def test_the_table_holds_every_word(shown):
    explorer = one((5, 3))
    tab = shown(explorer)
    tab.do("document.querySelector('.mmx summary').click()")
    tab.do("new Promise(done => setTimeout(done, 300))")
    rows = tab.do(
        "[...document.querySelectorAll('.mmx-table tbody tr')].map(row => [...row.children].map(c => c.innerText))"
    )
    own = explorer.pictures[0].panes[0].layers[0]
    assert len(rows) == 15
    assert rows[4] == ["row 2, column 2", *(f"{word} {cosine:.3f}" for word, cosine in own[4])]


def test_several_explorers_on_a_page_stay_apart(shown):
    tab = shown(one((5, 3)), one((2, 2)), one((3, 3)))
    assert tab.do("[...document.querySelectorAll('.mmx')].map(one => one.querySelectorAll('.mmx-cell').length)") == [
        15,
        4,
        9,
    ]
    tab.do("document.querySelectorAll('.mmx')[1].view.turn(2)")
    assert tab.do("[...document.querySelectorAll('.mmx')].map(one => one.view.layer)") == [0, 2, 0]


def test_hostile_words_are_words(shown):
    hostile = "</script><img src=x onerror=\"document.title='got'\">"
    words = {0: [[(hostile, 0.5), ("\u202eab", 0.4), ("مرحبا", 0.3)]]}
    tab = shown(
        Explorer(
            [Picture(hostile, [Pane(hostile, base64_png(noise(8)), (1, 1), words)], [(hostile, hostile)])], hostile
        )
    )
    point(tab, 0)
    assert tab.do(TIP)[0].split("\n") == [hostile, "0.500", "\\u202eab", "0.400", "مرحبا", "0.300"]
    assert tab.do("document.querySelector('.mmx-patch h3').innerText").startswith(hostile)
    assert tab.do("document.title") != "got"
    assert tab.do("document.images.length") == 0
    made = tab.do(
        f"new DOMParser().parseFromString({VIEW}.figure(), 'image/svg+xml').querySelectorAll('parsererror, img').length"
    )
    assert made == 0


def test_figures_for_a_paper(shown):
    image = noise(32)
    explorer = Explorer([Picture("a/b", [pane(image, (5, 3), "base"), pane(image, (5, 3), "sea")])])
    tab = shown(explorer)
    tab.do(CAUGHT)
    tab.do("[...document.querySelectorAll('.mmx-save button')].slice(0, 2).forEach(one => one.click())")
    tab.do("new Promise(done => { const look = () => saved.length > 1 ? done() : setTimeout(look, 20); look(); })")
    assert tab.do("saved") == ["a-b-layer-0.svg", "a-b-layer-0.png"]
    drawn = tab.do(f"{VIEW}.figure()")
    assert drawn.count("<rect") == 1 + 2 * 15
    assert drawn.count("<image") == 2
    assert drawn.count(base64_png(image)) == 2
    for own in explorer.pictures[0].panes:
        assert all(f"{word} {cosine:.3f}" in drawn for words in own.layers[0] for word, cosine in words)
    assert tab.do("blobs[0].text()") == drawn
    width = tab.do("createImageBitmap(blobs[1]).then(image => image.width)")
    assert width == 2 * (2 * 640 + 3 * 24)


def test_printing_shows_the_figure_alone(shown):
    tab = shown(one())
    tab.do("window.print = () => { window.printing = document.documentElement.className; }")
    tab.do("document.querySelectorAll('.mmx-save button')[2].click()")
    assert tab.do("[window.printing, document.querySelectorAll('.mmx-print svg').length]") == ["mmx-printing", 1]
    tab.do("dispatchEvent(new Event('afterprint'))")
    assert tab.do("[document.documentElement.className, document.querySelectorAll('.mmx-print').length]") == ["", 0]


def test_roles_and_names(shown):
    tab = shown(Explorer([Picture(name, [pane(noise(32, n), (5, 3), "m")]) for n, name in enumerate("ab")]))
    assert tab.do(UNNAMED) == 0
    roles = "[...document.querySelectorAll('.mmx [role]')].map(one => one.getAttribute('role'))"
    assert {"grid", "row", "gridcell", "img", "status", "region"} <= set(tab.do(roles))
    assert tab.do("document.querySelectorAll('.mmx-cell[tabindex=\"0\"]').length") == 1
    assert set(WORDS) >= set(tab.do(f"{VIEW}.panes[0].cells.map(cell => cell.word)"))


def test_without_scripts_the_page_says_so(tab, tmp_path):
    (tmp_path / "x.html").write_text(page.html(one()), "utf-8")
    tab("Emulation.setScriptExecutionDisabled", value=True)
    try:
        tab.open(tmp_path / "x.html")
        assert "allow scripts" in tab.do("document.querySelector('.mmx').innerText")
    finally:
        tab("Emulation.setScriptExecutionDisabled", value=False)
