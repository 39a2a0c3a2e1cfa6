"""Rows of the embedding matrix that no token has: whoever looks for the nearest words leaves them out."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE, WordPiece
from transformers import PreTrainedTokenizerFast

from mmalign.benchmarks.alignment import Alignment
from mmalign.data import Data, Record, Truth, Turn
from mmalign.objectives.basic import Direction
from mmalign.stages import explained
from mmalign.training.premise import Premise
from mmalign.vlm.vocabulary import Spellings, among_tokens, token_spellings
from tests.objectives.test_basic import batch_of, build, folders  # noqa: F401
from tests.vlm.test_model import picture
from tests.vlm.test_prefix import Quiz


class Seen(Data):
    """Two pictures that know what their patches show."""

    def __len__(self):
        return 2

    def __getitem__(self, number):
        return Record(f"row-{number}", (Turn("user", "<image>"), Turn("assistant", "red")), (number,))

    def image(self, reference):
        return picture(reference)

    def truth(self, reference, frame):
        words = ["star", "ring", "blue", "image", "left"]
        return Truth([(words[n % 5],) for n in range(25)], [True] * 25)


def inspect(model, tmp_path):
    return list(model.vlm.nearest_words([picture(0), picture(1)], [0, 1], top_k=3).rows())


def report(model, tmp_path):
    return [page["words"] for page in explained.asked(model.vlm, Quiz(images=2, each=1))]


def premise(model, tmp_path):
    right = [[{n % model.vlm.llm.vocab} for n in range(25)] for _ in range(3)]
    batch = batch_of(model, [0, 2])
    batch.pixels_B3SS[0] = model.vlm.pixels(picture(0))[0]
    return Premise(model, batch, right, tmp_path / "premise.jsonl", every=1, steps=1).look()


def alignment(model, tmp_path):
    probe = Alignment(Seen(), images=2)
    return probe._compared(model.vlm), probe.measure(model.vlm)


CLIENTS = {"inspect": inspect, "report": report, "premise": premise, "alignment": alignment}


@pytest.fixture
def model(folders):  # noqa: F811
    return build(folders, "llama", direction=Direction(2))


@torch.no_grad()
def spare_row(model):
    """A row that no token has, made equal to a visual token of the first picture."""
    llm = model.vlm.llm
    row = max(llm.chat.tokenizer.get_vocab().values()) + 1
    weight = llm.vocabulary()
    assert row < len(weight)
    weight[row] = model.vlm.visual_tokens(picture(0))[0, 7]
    return row


@pytest.mark.parametrize("client", CLIENTS)
def test_a_row_that_no_token_has_is_never_nearest(model, client, tmp_path):
    before = CLIENTS[client](model, tmp_path)
    spare_row(model)
    assert CLIENTS[client](model, tmp_path) == before


@pytest.mark.parametrize("client", CLIENTS)
def test_it_would_be_nearest_if_it_counted(model, client, tmp_path, monkeypatch):
    """The test above can fail: with every row of the matrix, each of the four gives something else."""
    before = CLIENTS[client](model, tmp_path)
    row = spare_row(model)
    chat = model.vlm.llm.chat
    every = chat.tokenizer.get_vocab() | {"another": row}
    monkeypatch.setattr(type(chat.tokenizer), "get_vocab", lambda self: every)
    cosine, token = model.vlm.nearest_tokens(picture(0))[0]
    assert token[0, 7, 0] == row
    assert cosine[0, 7, 0].item() == pytest.approx(1, abs=1e-5)
    if client == "premise":  # a row without a name is no word, and right for nobody
        monkeypatch.setattr(type(chat), "is_word", lambda self, token: token is None or token == "another")
        assert CLIENTS[client](model, tmp_path)["words"]["layer 0"] > 0
    else:
        assert CLIENTS[client](model, tmp_path) != before


def test_the_mark_of_an_image_is_left_out_too(model):
    llm = model.vlm.llm
    nearest = among_tokens(llm, llm.vocabulary())
    assert llm.chat.mark not in nearest.number_T
    assert len(nearest.number_T) == len(set(range(len(llm.chat.tokenizer))) - {llm.chat.mark})


@pytest.mark.parametrize("top_k", [1, 3, 10_000])
def test_nearest_by_a_loop(model, top_k):
    llm = model.vlm.llm
    nearest = among_tokens(llm, llm.vocabulary())
    vectors_2ND = torch.randn(2, 5, llm.dim)
    cosine_2NK, token_2NK = nearest(vectors_2ND, top_k)
    kept = min(top_k, len(nearest.number_T))
    assert cosine_2NK.shape == token_2NK.shape == (2, 5, kept)
    for image in range(2):
        for number in range(5):
            vector = vectors_2ND[image, number]
            slow = torch.stack([torch.cosine_similarity(vector, llm.vocabulary()[i], dim=0) for i in nearest.number_T])
            best = slow.argsort(descending=True)[:kept]
            assert torch.allclose(cosine_2NK[image, number], slow[best], atol=1e-5)
            assert token_2NK[image, number, 0] == nearest.number_T[best[0]]


def test_tokens_that_are_the_same_word():
    """Upper and lower case, with and without a blank, singular and plural; nothing else, and never an inner piece."""
    vocab = ["<s>", "Ġstar", "star", "ĠStar", "Ġstars", "STARS", "Ġst", "Ġstarry", "Ġber", "ry", ",", "Ġ,", "Ċ", "Ġ"]
    backend = Tokenizer(BPE({token: number for number, token in enumerate(vocab)}, []))
    backend.decoder, specials = ByteLevel(), ["<s>"]
    backend.add_special_tokens(specials)
    chat = SimpleNamespace(tokenizer=PreTrainedTokenizerFast(tokenizer_object=backend), mark=7)
    own = token_spellings(SimpleNamespace(chat=chat))
    assert own.of("star") == own.of("Stars") == {1, 2, 3, 4, 5}
    assert own.alike(5) == {1, 2, 3, 4, 5}
    assert own.alike(6) == {6}
    assert own.of("starry") == set()  # 7 is the image's mark
    assert own.alike(10) == {10, 11}
    assert [own.alike(n) for n in (0, 12, 13)] == [{0}, {12}, {13}]  # no text: alike to nothing


def test_inner_pieces_are_no_words():
    backend = Tokenizer(WordPiece({"[UNK]": 0, "ring": 1, "##ring": 2, "##": 3, "rings": 4}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    chat = SimpleNamespace(tokenizer=PreTrainedTokenizerFast(tokenizer_object=backend), mark=-1)
    own = token_spellings(SimpleNamespace(chat=chat))
    assert own.of("Ring") == {1, 4}
    assert own.alike(2) == {2}
    assert own.alike(3) == {3}


def test_words_of_a_list_that_are_the_same():
    own = Spellings(dict(enumerate(["berry", "Berries", "box", "traffic light", "Traffic Lights", "light"])))
    assert [own.alike(n) for n in range(6)] == [{0, 1}, {0, 1}, {2}, {3, 4}, {3, 4}, {5}]


def test_pieces_and_other_spellings_of_a_model(model):
    """A word's own pieces, and whole tokens: of `Ice creams` those of both words."""
    chat, words = model.vlm.llm.chat, ["star", "unbelievable", "Ice creams", "stars"]
    own = token_spellings(model.vlm.llm)
    for word, ids, pieces in zip(words, model.vlm.spellings(words), chat.pieces(words), strict=True):
        assert set(pieces) <= set(ids)
        assert set(ids) - set(pieces) == set().union(*(own.of(part) for part in word.split())) - set(pieces)


def test_a_word_that_the_tokenizer_does_not_know_has_no_piece(model):
    chat = model.vlm.llm.chat
    unknown = chat.pieces(["star"])[0][0]
    chat.tokenizer.unk_token = chat.tokenizer.convert_ids_to_tokens(unknown)
    assert model.vlm.pieces([]) == model.vlm.spellings([]) == []
    assert model.vlm.pieces(["star", "ring"]) == [[], chat.pieces(["ring"])[0]]
    assert model.vlm.word_embeddings(["star", "ring"]).silent == ["star"]
