"""`check_labels`: sources of ours and a new one pass, and what breaks a clause is said."""

from functools import partial

import pytest
import torch

from mmalign.labels import LabelSource
from mmalign.labels.given import Given
from mmalign.labels.words import NearestWords
from mmalign.plan import building
from mmalign.plan.cards import Registry
from mmalign.testing import check_labels

WORDS = "pkg:mmalign.toyworld/words/clean.txt"


@pytest.fixture(scope="module")
def encoder():
    return building.build(Registry().card("vision", "toy-clip")).float().eval()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path))


@pytest.mark.parametrize("more", [{}, {"center": 8}, {"vocabulary": "captions"}], ids=str)
def test_nearest_words_pass(encoder, more):
    check_labels(lambda keep: NearestWords(encoder, WORDS, keep, **more), encoder)


def test_given_words_pass():
    check_labels(partial(Given, WORDS))


def test_a_new_one_passes(encoder, start):
    check_labels(partial(start("labels"), encoder), encoder)


def test_a_list_shorter_than_what_is_kept(encoder, start, tmp_path):
    (tmp_path / "words.txt").write_text("star\nring\n")
    check_labels(lambda keep: start("labels")(encoder, keep, str(tmp_path / "words.txt")), encoder)


def over(name, change):
    def broken(base):
        return {name: lambda self, *given: change(self, getattr(base, name)(self, *given), *given)}

    return broken


def labels(change):
    return over("label", lambda self, found, dense_NJ: change(*found, dense_NJ))


def wordless(base):
    def prepare(self, captions, sample):
        base.prepare(self, captions, sample)
        self.words = []
        return {}

    return {"prepare": prepare}


def drawn(base):
    return {"identity": lambda self: f"{id(self)}"}


def in_place(base):
    return {"label": lambda self, dense_NJ: base.label(self, dense_NJ.mul_(2))}


def forgetful(base):
    def prepare(self, captions, sample):
        decided = base.prepare(self, captions, sample)
        self.text_WJ = self.text_WJ + 0.1 * torch.rand_like(self.text_WJ)
        return decided

    return {"prepare": prepare}


def samples(base):
    return {"prepare": lambda self, captions, sample: {"images": len(sample(2))}}


BROKEN = {
    "needs": (lambda base: {"needs": "pixels"}, "needs is 'pixels', not 'dense' or 'truth'"),
    "undecided": (over("prepare", lambda self, *_: None), r"prepare\(\) returns NoneType, not a dict"),
    "wordless": (wordless, r"words is empty after prepare\(\)"),
    "untitled": (over("prepare", lambda self, d, *_: setattr(self, "words", "star") or d), "words is no list of texts"),
    "nameless": (over("identity", lambda self, text: ""), r"identity\(\) is empty"),
    "drawn": (drawn, "two sources built alike have different identities"),
    "moved away": (over("to", lambda self, *_: None), r"to\(\) returns NoneType"),
    "short": (labels(lambda w, s, d: (w[1:], s[1:])), "labels of 6 patches, there are 7"),
    "flat": (labels(lambda w, s, d: (w.flatten(), s.flatten())), r"labels are \(21,\), not patches x words"),
    "unlike": (labels(lambda w, s, d: (w, s[:, 1:])), r"words are \(7, 3\), scores \(7, 2\)"),
    "int32": (labels(lambda w, s, d: (w.int(), s)), "words are torch.int32, not int64"),
    "half": (labels(lambda w, s, d: (w, s.half())), "scores are torch.float16, not fp32"),
    "infinite": (labels(lambda w, s, d: (w, s - torch.inf)), "scores are not finite"),
    "learns": (labels(lambda w, s, d: (w, s.requires_grad_(True))), "scores have a gradient"),
    "beyond": (labels(lambda w, s, d: (w + 100, s)), "words hold numbers beyond the 18 of the list"),
    "worst first": (labels(lambda w, s, d: (w.flip(1), s.flip(1))), "not sorted, best first"),
    "twice": (labels(lambda w, s, d: (w[:, :1].expand(-1, 3), s)), "a patch has the same word twice"),
    "few": (labels(lambda w, s, d: (w[:, :2], s[:, :2])), "2 words a patch of 3 that were to be kept"),
    "random": (labels(lambda w, s, d: (w, s + torch.rand(len(s), 1))), "the same patches get other labels"),
    "in place": (in_place, r"label\(\) changes the features"),
    "neighbours": (labels(lambda w, s, d: (w, s + d.mean())), "a patch's labels depend on the others"),
    "no rows": (labels(lambda w, s, d: (w, s) if len(d) else (w[:, :0], s[:, :0])), r"gives \(0, 0\), not \(0, 3\)"),
    "unpaired": (forgetful, "two sources built alike give other labels"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_the_contract_is_said(encoder, start, name):
    change, said = BROKEN[name]
    base = start("labels")
    broken = type("Broken", (base,), change(base))
    with pytest.raises(AssertionError, match=said):
        check_labels(partial(broken, encoder), encoder)


def test_dense_labels_want_an_encoder(encoder, start):
    with pytest.raises(AssertionError, match=r"the source needs dense features: check_labels\(make, encoder\)"):
        check_labels(partial(start("labels"), encoder))
    base = start("labels")
    with pytest.raises(AssertionError, match=r"prepare\(\) samples dense features"):
        check_labels(partial(type("Broken", (base,), samples(base)), encoder))


class Truthful(LabelSource):
    """Keeps the contract of a source that takes the data's own words."""

    needs = "truth"

    def __init__(self, keep):
        self.keep, self.words = keep, ["star", "ring", "red"]

    def given(self, truth):
        rows = [[self.words.index(word) for word in words if word in self.words][: self.keep] for words in truth]
        words_PK = torch.tensor([row + [0] * (self.keep - len(row)) for row in rows])
        scores_PK = torch.tensor([[1.0] * len(row) + [0.0] * (self.keep - len(row)) for row in rows])
        return words_PK, scores_PK

    def identity(self):
        return "truthful"


class Shifted(Truthful):
    def given(self, truth):
        words_PK, scores_PK = super().given(truth)
        return (words_PK + 1) % 3, scores_PK


class Talkative(Truthful):
    def given(self, truth):
        words_PK, scores_PK = super().given(truth)
        scores_PK[:, 0] = 1
        return words_PK, scores_PK


class Unheard(Truthful):
    def given(self, truth):
        return super().given([words or () if "no-such-word" not in words else ("star",) for words in truth])


class Greedy(Truthful):
    def given(self, truth):
        return super().given([() if "no-such-word" in words else words for words in truth])


class Ragged(Truthful):
    def given(self, truth):
        self.keep = len(truth)
        return super().given(truth)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Shifted, r"given\('star'\) says {'ring'}"),
        (Talkative, "a patch of which the data says nothing gets {'star'}"),
        (Unheard, "a word that is not in the list becomes {'star'}"),
        (Greedy, r"given\('red'\) beside a word that is not in the list says no word"),
        (Ragged, "1 words a patch here, 4 there: images cannot be stacked"),
    ],
)
def test_what_breaks_the_contract_of_given_words_is_said(source, said):
    check_labels(Truthful)
    with pytest.raises(AssertionError, match=said):
        check_labels(source)
