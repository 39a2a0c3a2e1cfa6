"""Nearest words: eq. 4 to 6 by hand, centring, the sign, templates, the caption vocabulary, the kept bank."""

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from mmalign.errors import CheckError, DataError
from mmalign.io import files
from mmalign.io.wordlist import tokens
from mmalign.labels import bank
from mmalign.labels.sign import Undecided
from mmalign.labels.words import NearestWords, mean_similarity, used
from mmalign.vision import Vision

WORDS = ["red", "blue", "star", "ring", "soup"]


class Tower(Vision):
    """A text tower that gives each word its own direction; counts how often it is asked."""

    def __init__(self, name="tower"):
        super().__init__()
        self.weight, self.name, self.asked = nn.Parameter(torch.zeros(1)), name, 0

    def words(self, texts):
        self.asked += 1
        rows = [torch.randn(16, generator=torch.Generator().manual_seed(sum(map(ord, t)))) for t in texts]
        return normalize(torch.stack(rows), dim=-1)

    def identity(self):
        return self.name


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def place(tmp_path):
    (tmp_path / "words.txt").write_text("\n".join(WORDS))
    return str(tmp_path / "words.txt")


def dense(seed=0, patches=15):
    return torch.randn(patches, 16, generator=torch.Generator().manual_seed(seed))


def ready(source, sample=(), captions=()):
    source.prepare(lambda: captions, lambda images: list(sample)[:images])
    return source


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("center", [0, 3])
def test_eq_4_to_6_by_hand(place, sign, center):
    sample = [(dense(seed), "") for seed in (1, 2, 3, 4)]
    source = ready(NearestWords(Tower(), place, keep=2, sign=sign, center=center), sample)
    text = Tower().words(WORDS)
    for patch, words, scores in zip(dense(), *source.label(dense()), strict=True):
        want = []
        for number in range(len(WORDS)):
            cosine = float(patch @ text[number] / patch.norm() / text[number].norm())
            seen = [float(p @ text[number] / p.norm()) for d, _ in sample[:center] for p in d]
            want.append(sign * (cosine - (sum(seen) / len(seen) if seen else 0)))
        best = sorted(range(len(WORDS)), key=lambda n: -want[n])[:2]
        assert words.tolist() == best
        assert scores.tolist() == pytest.approx([want[n] for n in best], rel=2**-11, abs=1e-6)  # in fp16
        assert torch.equal(scores, scores.half().float())


def test_the_bank_is_kept_by_content(place):
    tower = Tower()
    ready(NearestWords(tower, place, keep=2))
    ready(NearestWords(tower, place, keep=2))
    assert tower.asked == 1
    ready(NearestWords(tower, place, keep=2, templates=["a {}", "the {}"]))
    assert tower.asked == 3
    other = Tower("another")
    ready(NearestWords(other, place, keep=2))
    assert other.asked == 1


def test_a_damaged_bank_is_made_again_and_a_closed_cache_is_no_matter(place, monkeypatch):
    tower = Tower()
    want = ready(NearestWords(tower, place, keep=2)).bank.text_WJ
    (kept,) = files.cache("banks").glob("*.safetensors")
    kept.write_bytes(kept.read_bytes()[:-3])
    assert torch.equal(ready(NearestWords(tower, place, keep=2)).bank.text_WJ, want)
    assert tower.asked == 2
    (kept.parent.parent / "closed").write_text("a file, where a folder is wanted")
    monkeypatch.setenv("MMALIGN_CACHE", str(kept.parent.parent / "closed"))
    assert torch.equal(ready(NearestWords(tower, place, keep=2)).bank.text_WJ, want)


def test_templates_are_averaged():
    tower = Tower()
    text = bank.text_bank(tower, ["red"], ["a {}", "the {}"])
    want = normalize(tower.words(["a red"]) + tower.words(["the red"]), dim=-1)
    assert torch.allclose(text, want, atol=1e-6)
    with pytest.raises(CheckError, match=r"one \{\} for the word, got 'a word'"):
        bank.text_bank(tower, ["red"], ["a word"])


def test_the_caption_vocabulary(place):
    source = ready(NearestWords(Tower(), place, keep=2, vocabulary="captions"), captions=["A Red star.", "the ring's"])
    assert source.words == ["red", "star"]
    with pytest.raises(DataError, match="no word of the list occurs"):
        used(WORDS, ["nothing here"])
    said = "The ring's well-kept RED_star, 2 of 3!"
    assert tokens(said) == {"the", "ring's", "well-kept", "red", "star", "2", "of", "3"}


def showing(word, sign, number=0):
    """Patches that look like a word, and a caption that names it."""
    text = Tower().words([word])
    return (sign * text.expand(9, -1) + 0.01 * dense(number, patches=9)), f"a {word}, {number}"


@pytest.mark.parametrize("truth", [1, -1])
@pytest.mark.parametrize("center", [0, 3])
def test_auto_is_the_sign_the_captions_agree_with(place, truth, center):
    sample = [showing(word, truth, number) for number in range(4) for word in WORDS]
    source = NearestWords(Tower(), place, keep=1, sign="auto", center=center)
    decisions = source.prepare(lambda: [], lambda images: sample)
    assert source.sign == source.bank.sign == decisions["sign"].sign == truth
    assert f"sign {truth:+d}" in source.identity()
    assert str(decisions["sign"]).startswith(f"{truth:+d} (with +1 the best word of ")


def test_auto_that_cannot_decide_says_so_before_the_list_is_encoded(place):
    tower = Tower()
    source = NearestWords(tower, place, keep=1, sign="auto")
    sample = [(dense(number), f"a {word} {number}") for number, word in enumerate(WORDS * 2)]
    with pytest.raises(Undecided, match=r"sign auto is not decided: with \+1 the best word of .*%"):
        source.prepare(lambda: [], lambda images: sample)
    assert tower.asked == 1  # the content words alone
    assert source.bank is None


@pytest.mark.parametrize("center", [1, 2, 3, 256])
def test_the_very_images_that_are_labelled_may_be_few_and_without_captions(place, center):
    """What somebody without a data set hands it: a few images, no caption."""
    images = [dense(seed) for seed in (1, 2, 3)]
    source = NearestWords(Tower(), place, keep=2, center=center)
    decisions = source.prepare(lambda: [], lambda wanted: [(dense_PJ, "") for dense_PJ in images[:wanted]])
    assert decisions == {"centred on": f"{min(center, 3)} images"}
    alike = [normalize(dense_PJ, dim=-1) @ Tower().words(WORDS).T for dense_PJ in images]
    mean = torch.cat(alike[:center]).mean(0)
    for dense_PJ, alike_PW in zip(images, alike, strict=True):
        want = (alike_PW - mean).topk(2, dim=1)
        words, scores = source.label(dense_PJ)
        assert torch.equal(words, want.indices)
        assert torch.allclose(scores, want.values, rtol=2**-11, atol=1e-6)


@pytest.mark.parametrize(
    ("args", "images", "at", "message"),
    [
        ({"center": 256}, 0, "args.center", "center is 256 images, and none can be read"),
        ({"center": 2, "sign": "auto"}, 0, "args.center", "center is 2 images, and none can be read"),
        ({"sign": "auto"}, 0, "args.sign", "sign auto is decided by captions, and none of 0 images has one"),
        ({"sign": "auto"}, 3, "args.sign", "sign auto is decided by captions, and none of 3 images has one"),
        ({"vocabulary": "captions"}, 3, "args.vocabulary", "vocabulary captions, and there is no caption"),
    ],
)
def test_what_cannot_be_decided_without_images_or_captions_is_refused(place, args, images, at, message):
    tower = Tower()
    source = NearestWords(tower, place, keep=2, **args)
    with pytest.raises(DataError, match=message) as caught:
        source.prepare(lambda: [], lambda wanted: [(dense(n), " ") for n in range(images)][:wanted])
    assert caught.value.at == at
    assert caught.value.fix
    assert not tower.asked  # before 41,242 words are encoded


def test_no_image_is_looked_at_where_nothing_is_to_be_decided(place):
    wanted = []
    source = NearestWords(Tower(), place, keep=2)
    assert source.prepare(lambda: [], lambda images: wanted.append(images) or []) == {}
    assert wanted == [0]
    assert len(source.label(dense())[0]) == 15


@pytest.mark.parametrize(
    "args", [{"sign": 2}, {"sign": "up"}, {"vocabulary": "some"}, {"center": -1}]
)  # fmt: skip
def test_bad_settings(place, args):
    with pytest.raises(CheckError, match=r"(must be one of|at least 0)"):
        NearestWords(Tower(), place, keep=2, **args)


def test_identity_tells_sources_apart(place, tmp_path):
    (tmp_path / "other.txt").write_text("red\nblue")
    identities = [
        ready(NearestWords(Tower(name), words, keep=2, **more)).identity()
        for name, words, more in [
            ("a", place, {}), ("b", place, {}), ("a", str(tmp_path / "other.txt"), {}), ("a", place, {"sign": -1}),
        ]
    ]  # fmt: skip
    assert len(set(identities)) == 4


def test_a_repeated_word_is_a_label_at_its_first_place_only(tmp_path):
    place = tmp_path / "twice.txt"
    place.write_text("red\nblue\nred\nstar\n")
    source = ready(NearestWords(Tower(), str(place), keep=3))
    assert len(source.words) == 4
    words, _ = source.label(dense())
    assert all(sorted(row) == [0, 1, 3] for row in words.tolist())


def test_mean_similarity_is_the_mean_over_patches():
    text = Tower().words(WORDS)
    both = [dense(1, 4), dense(2, 7)]
    want = torch.cat([normalize(d, dim=-1) for d in both]) @ text.T
    assert torch.allclose(mean_similarity(text, both), want.mean(0), atol=1e-6)
