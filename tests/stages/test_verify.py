"""Every check of an exported folder fails where the folder is wrong, says what is wrong, and no folder is left."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from mmalign.data import MARK
from mmalign.errors import StageError
from mmalign.stages import export, verify
from mmalign.stages.checks import Checks
from mmalign.stages.verify import Asked
from mmalign.training.events import Events
from tests.llms.test_templates import TEMPLATES
from tests.stages.test_export import build  # noqa: F401

FAMILIES = {"llama": "vicuna_v1", "qwen3": "chatml"}  # and a template
BOS = {"Sequence": {"id": "A", "type_id": 0}}


def edit(name, change):
    """A file of JSON, changed in place."""

    def on(place):
        about = json.loads((place / name).read_text())
        change(about)
        (place / name).write_text(json.dumps(about))

    return on


def adds(token):
    """A post-processor that puts a token in front of every text, as Llama's."""

    def on(about):
        (id_,) = (one["id"] for one in about["added_tokens"] if one["content"] == token)
        single = [{"SpecialToken": {"id": token, "type_id": 0}}, BOS]
        special = {token: {"id": token, "ids": [id_], "tokens": [token]}}
        about["post_processor"] = {
            "type": "TemplateProcessing", "single": single, "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": special,
        }  # fmt: skip

    return edit("tokenizer.json", on)


def text(name, old, new):
    def on(place):
        before = (place / name).read_text()
        assert old in before
        (place / name).write_text(before.replace(old, new))

    return on


def weights(change):
    def on(place):
        tensors = load_file(place / "model.safetensors")
        change(tensors)
        save_file(tensors, place / "model.safetensors", {"format": "pt"})

    return on


def renamed(tensors):
    tensors["other"] = tensors.pop("multi_modal_projector.linear_1.bias")


def doubled(tensors):
    tensors["multi_modal_projector.linear_1.weight"] *= 2


CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
BROKEN = {  # what is done to a folder: the check that fails, what it says
    "path": (edit("config.json", lambda c: c.update(_name_or_path="/data/models/llm")), "paths", "'/data/models/llm'"),
    "its own path": (
        lambda place: (place / "notes.txt").write_text(f"made in {place.parent}"), "paths", "a file; notes.txt has '/"),
    "marks": (text(TEMPLATE, "{#- generation -#}", "{%- generation -%}"), "template", "unknown tag 'generation'"),
    "no template": (lambda place: (place / TEMPLATE).unlink(), "template", "there is none"),
    "no JSON": (text("processor_config.json", "{", "["), "paths", "processor_config.json is no JSON"),
    "no config": (lambda place: (place / "config.json").unlink(), "loading", "a config.json of a llava model"),
    "cut off": (
        lambda place: os.truncate(place / "model.safetensors", 500), "loading", "a model that plain transformers"),
    "right": (edit(CONFIG, lambda c: c.update(padding_side="right")), "padding", "it pads on the right"),
    "no pad": (edit(CONFIG, lambda c: c.pop("pad_token")), "padding", "a padding token; it has none"),
    "other pad": (edit("generation_config.json", lambda c: c.update(pad_token_id=7)), "padding", "config's 7"),
    "begin twice": (
        adds("<s>"), "ids", "one turn with a picture, by processor(text=apply_chat_template(...)): "
        "61 tokens; there are 62, at token 1 '<s>'"),
    "words": (text(TEMPLATE, "USER: ", "USER- "), "ids", "by apply_chat_template(tokenize=True)"),
    "refuses": (
        text(TEMPLATE, "{{- bos_token -}}", "{{- raise_exception('no') -}}"), "ids", "TemplateError: no"),
    "pixels": (
        edit("processor_config.json", lambda c: c["image_processor"].update(image_mean=[0, 0, 0])), "pixels", "differ"),
    "names": (weights(renamed), "weights", "missing keys: 1, such as model.multi_modal_projector.linear_1.bias"),
    "no mask": (
        edit(CONFIG, lambda c: c.update(model_input_names=["input_ids"])), "batch", "alone, in a batch of 4 padded"),
}  # fmt: skip
LOGITS = {"doubled": weights(doubled)}


@pytest.fixture(scope="module")
def whole(build, tmp_path_factory):  # noqa: F811
    """{template: a folder and what it must answer}; ChatML on a tokenizer that has a begin token."""
    place = tmp_path_factory.mktemp("whole")
    formats = {"vicuna_v1": "llama", "chatml": "qwen3"}
    models = {name: build("clip", family, name, words="adds") for name, family in formats.items()}
    return {name: export.write(model, place / name) for name, model in models.items()}


@pytest.fixture(scope="module")
def captions(build, tmp_path_factory):  # noqa: F811
    """{family: a folder whose template shows pictures and answers only}, with a begin token and without."""
    place, written = tmp_path_factory.mktemp("captions"), {}
    for family, template in FAMILIES.items():
        model = build("clip", family, template)
        model.llm.chat.template = (TEMPLATES / "plain.jinja").read_text()
        written[family] = export.write(model, place / family)
    return written


@pytest.fixture(scope="module")
def seen(whole, captions, tmp_path_factory):
    """{how a folder was broken: what was seen in it}, and of whole ones; all in one process."""
    place, folders = tmp_path_factory.mktemp("broken"), {}

    def copied(name, change, kind="vicuna_v1"):
        target = place / name / "out"
        shutil.copytree(whole[kind].folder, target)
        change(target)
        job = {**whole[kind].job, "folder": str(target), "paths": [str(target.parent)]}
        folders[name] = Asked(target, job, whole[kind].tensors)

    for name, (change, _, _) in BROKEN.items():
        copied(name, change)
    for name, change in LOGITS.items():
        copied(name, change)
    copied("begin without a template's", adds("<s>"), "chatml")
    folders.update(whole | captions)
    return dict(zip(folders, verify.ask([*folders.values()]), strict=True))


@pytest.mark.parametrize("name", BROKEN)
def test_a_folder_that_is_wrong_fails(seen, name):
    _, check, said = BROKEN[name]
    failure = seen[name]["failure"]
    assert failure["check"] == check
    assert said in failure["what"]
    with pytest.raises(StageError, match=f"the exported folder fails the check of its {check}: expected is ") as error:
        export.judge(seen[name], Path("out"), 1e-3)
    assert error.value.fix


def test_a_begin_token_that_only_the_tokenizer_adds(seen):
    """ChatML has none: `apply_chat_template` gets one from a Llama's tokenizer, and nothing was trained behind one."""
    failure = seen["begin without a template's"]["failure"]
    assert failure["check"] == "ids"
    assert "one turn with a picture, by apply_chat_template(tokenize=True)" in failure["what"]
    assert "at token 0 '<s>' '<|im_start|>'" in failure["what"]


def test_whole_folders_pass(seen, whole):
    for name in whole:
        export.judge(seen[name], Path("out"), 1e-3)


def test_logits_that_differ(seen):
    assert seen["doubled"]["failure"] is None
    with pytest.raises(StageError, match=r"the check of its logits: .* by \d\.\d\de[-+]\d\d, more than 0.001"):
        export.judge(seen["doubled"], Path("out"), 1e-3)
    with pytest.raises(StageError, match="by nan, more than"):
        export.judge({"difference": float("nan"), "failure": None}, Path("out"), 1e-3)


def test_all_conversations_are_asked(whole):
    """Neither template refuses or leaves out any."""
    for one in whole.values():
        assert [talk["name"] for talk in one.job["talks"]] == list(verify.TALKS)
        assert [len(chats) for chats in one.job["questions"]] == [4, 4]
        assert {name for name in one.tensors if name != "pixels"} == {f"logits {name}" for name in verify.COMPARED}
        lengths = {len(chat["ids"]) for chat in one.job["questions"][0]}
        assert len(lengths) > 2
        assert not one.note


def test_a_folder_that_fails_is_not_kept(build, tmp_path, monkeypatch):  # noqa: F811
    failure = {"check": "ids", "what": "three tokens", "fix": "count again"}
    monkeypatch.setattr(verify, "ask", lambda asked, checked: [{"difference": None, "failure": failure}])
    with pytest.raises(StageError, match="the check of its ids: expected is three tokens") as error:
        export.export(build(), None, tmp_path / "out", Checks(Events(tmp_path), 1))
    assert error.value.at == str(tmp_path / "out")
    assert error.value.fix == "count again"
    assert [place.name for place in tmp_path.iterdir()] == ["events.jsonl"]


def test_a_template_that_joins_answers_to_its_text_is_said(build, tmp_path):  # noqa: F811
    """Byte-level tokens take the blank in front of a word with it; ours never cross the border of an answer."""
    model = build("siglip", "qwen3", "chatml")
    chat = model.llm.chat
    chat.template = chat.template.replace("+ '\\n' -}}", "+ ' ' -}}").replace("assistant\\n", "assistant ")
    one = export.write(model, tmp_path)
    assert "where a conversation has earlier answers" in one.note
    ids = {talk["name"]: talk["ids"] for talk in one.job["talks"]}
    assert ids["one turn without a picture"] == chat.prompt(verify.TALKS["one turn without a picture"])
    turns = verify.TALKS[name := "two turns as they are trained"]
    assert ids[name] != chat.encode(turns, [model.tokens]).ids
    shown = [{"role": turn.role, "content": turn.text.replace(MARK, MARK * model.tokens)} for turn in turns]
    assert ids[name] == AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(shown)["input_ids"]


@pytest.mark.parametrize(
    ("script", "said"), [("echo bad >&2; exit 3", r"\(code 3\): bad"), ("kill -9 $$", r"\(code -9\)")]
)
def test_a_process_that_ends_early(script, said, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(StageError, match=f"the process that checks what is exported ended early {said}") as error:
        verify.ask([Asked(Path("out"), {"talks": [], "questions": []}, {})])
    assert error.value.fix == ("pip check" if "3" in said else "memory for the weights once more in fp32")


def test_the_process_cannot_import_mmalign(tmp_path):
    """Libraries stand in, which try: they are imported where the script imports them."""
    (tmp_path / "torch.py").write_text(
        "def set_num_threads(count):\n"
        "    for name in ('mmalign', 'mmalign.errors'):\n"
        "        try:\n"
        "            __import__(name)\n"
        "        except ImportError:\n"
        "            print(count, name)\n"
    )
    (tmp_path / "transformers.py").write_text("class logging:\n    def set_verbosity_error(): pass\n")
    (tmp_path / "jobs.json").write_text('{"threads": 3, "jobs": []}')
    script = Path(verify.__file__).with_name("verifier.py")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(script.parents[2])])}
    command = [sys.executable, "-P", script, tmp_path / "jobs.json", tmp_path / "seen.json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "3 mmalign\n3 mmalign.errors\n"
    assert json.loads((tmp_path / "seen.json").read_text()) == []


def test_a_template_that_only_captions(captions, seen):
    """LLaVA's first stage: questions are left out, and so is what is asked without a picture."""
    for family in FAMILIES:
        export.judge(seen[family], Path("out"), 1e-3)
    names = [[talk["name"] for talk in captions[family].job["talks"]] for family in FAMILIES]
    assert names == [["one turn with a picture", "one turn without a picture"], ["one turn with a picture"]]


def test_a_template_that_refuses_everything(build, tmp_path):  # noqa: F811
    model = build()
    refuses = "{%- if messages[0].content != 'x' -%}{{ raise_exception('never') }}{%- endif -%}"
    model.llm.chat.template = refuses + "x{% generation %}x{% endgeneration %}"
    with pytest.raises(StageError, match="refuses every conversation that an export is asked") as error:
        export.write(model, tmp_path)
    assert error.value.fix == "a template that takes a user's turn with a picture"
