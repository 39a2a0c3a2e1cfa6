"""A llava-hf folder answers as transformers does."""

import pytest
import torch

from mmalign.errors import RunError
from mmalign.integrations.llava import llava, template_of
from mmalign.vlm.folder import read
from tests import parts
from tests.llms.test_templates import TEMPLATES
from tests.stages.test_export import build  # noqa: F401
from tests.vlm.test_model import picture
from tests.vlm.test_prefix import Quiz


@pytest.mark.parametrize(
    ("vision", "family", "template"),
    [("clip", "llama", "vicuna_v1"), ("siglip", "gemma2", "gemma"), ("dinov2", "phi3", "phi3")],
)
def test_a_llava_hf_folder_comes_back_as_it_went(build, tmp_path, vision, family, template):  # noqa: F811
    """An encoder that pads images to a square, one that stretches them, one at a size of its own."""
    given = build(vision, family, template)
    parts.exported(given, tmp_path / "hf")
    llava(str(tmp_path / "hf"), tmp_path / "mine")
    loaded = read(tmp_path / "mine")
    wide = picture(5, size=60).resize((60, 30))
    assert torch.allclose(loaded.vision.pixels(wide), given.vision.pixels(wide), atol=1e-5)
    bench = Quiz(images=1, each=3)
    questions = bench.questions()[:3]
    ours = {q.id: text for q, text in given.answers(bench, questions, batch=4)}
    said = loaded.ask([q.text for q in questions], bench.image(0), max_new_tokens=6)
    assert said == [ours[q.id] for q in questions]


def test_a_template_of_no_known_format_comes_back_too(build, tmp_path):  # noqa: F811
    """The exported one has no marks; the one it was made of lies beside it."""
    given = build()
    own = "{%- for m in messages -%}{{ m.role }}: {% generation %}{{ m.content }}{% endgeneration %}{%- endfor -%}"
    given.llm.chat.template = own
    parts.exported(given, tmp_path / "hf")
    assert "endgeneration %}" not in (tmp_path / "hf" / "chat_template.jinja").read_text()
    llava(str(tmp_path / "hf"), tmp_path / "mine")
    assert read(tmp_path / "mine").llm.chat.template == own
    (tmp_path / "hf" / "chat_template.jinja.marked").unlink()
    (tmp_path / "hf" / "SHA256SUMS").unlink()
    with pytest.raises(RunError, match="is of no known format"):
        llava(str(tmp_path / "hf"), tmp_path / "other")


@pytest.mark.parametrize(
    ("own", "name"),
    [
        ("{{ 'USER: ' + messages[0].content + ' ASSISTANT:' }}", "vicuna_v1"),
        ("{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}", "qwen2"),
        ("{{ '<|im_start|>' + message['role'] }}", "chatml"),
        ("{{ '<|start_header_id|>' }}", "llama3"),
        ("{%- set first_user_prefix = '' -%}{{ '<start_of_turn>' + role }}", "gemma3"),
        ("{{ '<start_of_turn>' + role }}", "gemma"),
        ("{{ ' [INST] ' + message['content'] }}", "mistral"),
        ("{{ '<|assistant|>\n' }}", "phi3"),
    ],
)
def test_a_published_template_is_known(own, name):
    """Ours of the same format takes its place, for theirs mark no answers."""
    assert template_of("org/model", own) == (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
