"""Patches by their labels and by the words nearest to their visual tokens: against loops over patches and words."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from mmalign.data import Truth
from mmalign.errors import CheckError
from mmalign.labels import PatchLabels
from mmalign.vlm.misalignment import misalignment, tally
from tests.vlm.test_replacement import GRID, made

WORDS = ["Star", "red", "ring", "zebra crossing", "circles", "box", "unbelievable", "grey"]
P, K = 15, 3
NAMES = ("one", "two")


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def model(request, tmp_path_factory):
    return made(tmp_path_factory.mktemp("parts"), request.param)


@pytest.fixture
def pictures():
    return [Image.effect_noise((50, 35), 30 * n).convert("RGB") for n in (2, 3)]


def labelled(seed=0, grid=GRID):
    """Words at random, a third of them with a score of 0 or less."""
    random = torch.Generator().manual_seed(seed)
    patches = grid[0] * grid[1]
    words_BPK = torch.rand(2, patches, len(WORDS), generator=random).argsort(-1)[..., :K]
    scores_BPK = torch.rand(2, patches, K, generator=random).sort(-1, descending=True).values - 0.33
    scores_BPK[:, ::5] = 0
    return PatchLabels(WORDS, words_BPK, scores_BPK, grid)


def true(seed=1):
    """Of each patch an object's words in other spellings, the background's, words that no list has, or nothing."""
    said = [("stars", "RED"), ("circle",), ("boxes",), ("zebra crossings",), ("lamp",), ("lamp", "ring"), ()]
    random = torch.Generator().manual_seed(seed)
    truths = []
    for _ in range(2):
        words = [said[n] for n in torch.randint(len(said), (P,), generator=random).tolist()]
        truths.append(Truth(words, [None if not one else one != ("circle",) for one in words]))
    return truths


ALIKE = {
    "Star": {"stars"}, "red": {"RED"}, "ring": {"ring"}, "zebra crossing": {"zebra crossings"},
    "circles": {"circle"}, "box": {"boxes"}, "unbelievable": set(), "grey": set(),
}  # fmt: skip


def test_each_patch_by_the_definition(model, pictures):
    labels, truths = labelled(), true()
    found = misalignment(model, pictures, labels, truths, NAMES)
    pieces = [torch.tensor(ids) for ids in model.llm.chat.pieces(WORDS)]
    means = [model.llm.embed(ids).detach().float().mean(0) for ids in pieces]
    assert len(found) == 2 * P
    for n, one in enumerate(found):
        image, p = divmod(n, P)
        token = model.visual_tokens(pictures[image])[0, p].float()
        cosines = [float(F.cosine_similarity(token, mean, dim=0)) for mean in means]
        assert (one.image, one.token, one.row, one.column) == (NAMES[image], p, p // 3, p % 3)
        assert one.word == WORDS[max(range(len(WORDS)), key=cosines.__getitem__)]
        assert one.cosine == pytest.approx(max(cosines), abs=1e-5)
        own = zip(labels.words_BPK[image, p].tolist(), labels.scores_BPK[image, p].tolist(), strict=True)
        kept = [(number, score) for number, score in own if score > 0]
        assert [(WORDS[number], score) for number, score in kept] == one.labels
        assert one.true == truths[image].words[p]
        assert one.object is truths[image].object[p]
        known = bool(one.true) and one.true != ("lamp",)
        assert one.right is (bool(ALIKE[one.word] & set(one.true)) if known else None)
        if kept:
            assert one.label_cosine == pytest.approx(cosines[kept[0][0]], abs=1e-5)
            assert one.agrees is (one.word in [label for label, _ in one.labels])
            assert one.label_right is (bool(ALIKE[one.labels[0][0]] & set(one.true)) if known else None)
        else:
            assert (one.label_cosine, one.agrees, one.label_right) == (None, None, None)
    assert {True, False, None} == {one.label_right for one in found} == {one.agrees for one in found}


def test_tokens_that_say_their_labels(model, pictures, monkeypatch):
    """Perfect alignment: each token is the embedding of its label, and is right where its label is."""
    labels, truths = labelled(), true()
    labels.scores_BPK[:, :, 0] = 1.0
    embeds_ND = model.word_embeddings(WORDS)[labels.words_BPK[..., 0].flatten()].detach()
    tokens = iter(embeds_ND.view(2, P, -1))
    monkeypatch.setattr(model.adapter, "forward", lambda patches: next(tokens)[None])
    found = misalignment(model, pictures, labels, truths)
    assert [one.image for one in found] == ["0"] * P + ["1"] * P
    assert all(one.agrees and one.label_right is one.right for one in found)
    assert [one.word for one in found] == [one.labels[0][0] for one in found]
    assert all(one.cosine == pytest.approx(1, abs=1e-5) == one.label_cosine for one in found)
    counts = tally(found)
    assert counts["all"]["misaligned"] == 0
    assert counts["all"]["right"] == counts["all"]["label_right"] > 0
    assert counts["all"]["agree"] == counts["all"]["labelled"] == 2 * P


def test_counts(model, pictures):
    found = misalignment(model, pictures, labelled(), true())
    counts = tally(found)
    assert set(counts) == {"all", "object", "background"}
    for name, kinds in (("all", (True, False, None)), ("object", (True,)), ("background", (False,))):
        own = [one for one in found if one.object in kinds]
        slow = dict.fromkeys(counts[name], 0)
        for one in own:
            slow["patches"] += 1
            slow["labelled"] += 1 if one.labels else 0
            slow["agree"] += 1 if one.agrees else 0
            slow["known"] += 0 if one.right is None else 1
            slow["right"] += 1 if one.right else 0
            slow["label_right"] += 1 if one.label_right else 0
            slow["misaligned"] += 1 if one.label_right and not one.right else 0
        assert counts[name] == slow
    assert counts["all"]["misaligned"] > 0
    assert tally([])["all"]["patches"] == 0


def test_padding_is_nobodys(model, pictures, monkeypatch):
    monkeypatch.setattr("mmalign.vision.Frame.seen", lambda self: [True] * 12 + [False] * 3)
    labels = labelled()
    labels.scores_BPK[:, 12:] = 0  # as a label source leaves padding
    found = misalignment(model, pictures, labels, true())
    assert [one.padding for one in found] == 2 * ([False] * 12 + [True] * 3)
    for one in found:
        if one.padding:
            assert (one.true, one.object, one.right, one.label_right, one.agrees) == ((), None, None, None, None)
    assert tally(found)["all"]["patches"] == 24


def test_without_truth_nothing_is_right_or_wrong(model, pictures):
    found = misalignment(model, pictures[0], PatchLabels(WORDS, *parts_of(labelled(), 1), GRID))
    assert len(found) == P
    assert all(one.right is None and one.label_right is None and one.true == () for one in found)
    assert set(tally(found)) == {"all"}
    objects = [Truth([("red",)] * P)]  # data that names no kinds: what has words is an object
    assert all(
        one.object
        for one in misalignment(model, pictures[0], PatchLabels(WORDS, *parts_of(labelled(), 1), GRID), objects)
    )


def parts_of(labels, images):
    return labels.words_BPK[:images], labels.scores_BPK[:images]


def test_labels_of_another_grid_are_laid_onto_the_tokens(model, pictures):
    """Three times as fine: a token's labels are those of the patch under its centre."""
    fine = labelled(grid=(15, 9))
    fine.frames = [replace(frame, grid=(15, 9)) for frame in model.frames(pictures)]
    found = misalignment(model, pictures, fine)
    for one in found:
        image, p = int(one.image), (3 * one.row + 1) * 9 + 3 * one.column + 1
        own = zip(fine.words_BPK[image, p].tolist(), fine.scores_BPK[image, p].tolist(), strict=True)
        assert one.labels == [(WORDS[number], score) for number, score in own if score > 0]


def test_a_label_that_the_tokenizer_makes_nothing_of(model, pictures, monkeypatch):
    pieces = model.llm.chat.pieces
    monkeypatch.setattr(
        model.llm.chat,
        "pieces",
        lambda words: [[] if word == "red" else ids for word, ids in zip(words, pieces(words), strict=True)],
    )
    found = misalignment(model, pictures, labelled())
    best = [(one.labels[0][0] == "red", one.label_cosine is None) for one in found if one.labels]
    assert set(best) == {(True, True), (False, False)}
    assert "red" not in {one.word for one in found}


def test_mistakes(model, pictures, monkeypatch):
    with pytest.raises(CheckError, match="labels of 2 images, and 1 images") as error:
        misalignment(model, pictures[:1], labelled())
    assert (error.value.at, error.value.fix) == ("labels", "of the same")
    with pytest.raises(CheckError, match="truths of 1 images, and 2 images"):
        misalignment(model, pictures, labelled(), true()[:1])
    monkeypatch.setattr(type(model.adapter), "keeps_grid", False)
    with pytest.raises(CheckError, match="are no patches"):
        misalignment(model, pictures, labelled())
