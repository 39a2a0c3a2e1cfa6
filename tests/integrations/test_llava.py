"""LLaVA's own files: projectors of every layout, and a llava-hf folder that answers as transformers does."""

import pytest
import torch
from safetensors.torch import save_file

from mmalign.adapters.mlp import MLP
from mmalign.errors import CardError, DataError, RunError
from mmalign.integrations.llava import adapter, adapter_weights, llava, load_adapter, template_of
from mmalign.vlm.folder import read
from tests import parts
from tests.llms.test_templates import TEMPLATES
from tests.stages.test_export import build  # noqa: F401
from tests.vlm.test_model import picture
from tests.vlm.test_prefix import Quiz


def projector(depth, width=8, dim=6):
    """What LLaVA's first stage saves: mm_projector.bin, keys with the model's prefix."""
    torch.manual_seed(0)
    made = MLP(width, dim, (2, 2), depth)
    prefix = "model.mm_projector."
    named = {name.removeprefix("layers."): value for name, value in made.state_dict().items()}
    if depth == 1:  # LLaVA's `linear` is no Sequential
        named = {name.removeprefix("0."): value for name, value in named.items()}
    return made, {prefix + name: value.half() for name, value in named.items()}


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("folder", [False, True])
def test_mm_projector_bin(tmp_path, depth, folder):
    made, saved = projector(depth)
    torch.save(saved, tmp_path / "mm_projector.bin")
    mine = MLP(8, 6, (2, 2), depth)
    load_adapter(mine, str(tmp_path if folder else tmp_path / "mm_projector.bin"))
    patches = torch.randn(1, 4, 8)
    assert torch.allclose(mine(patches), made(patches), atol=1e-2)


def test_widths_that_do_not_fit_are_named(tmp_path):
    torch.save(projector(2)[1], tmp_path / "mm_projector.bin")
    with pytest.raises(CardError, match=r"layers.0.weight \(6, 8\).*this one has layers.0.weight \(6, 10\)"):
        load_adapter(MLP(10, 6, (2, 2), 2), str(tmp_path))


class Evil:
    def __reduce__(self):
        return (print, ("code was run",))


@pytest.mark.parametrize("content", [b"no pickle", {"other": torch.zeros(1)}, {"x": Evil()}, torch.zeros(2), [1], None])
def test_what_is_no_projector(tmp_path, content, capsys):
    place = tmp_path / "mm_projector.bin"
    if isinstance(content, bytes):
        place.write_bytes(content)
    elif content is not None:
        torch.save(content, place)
    with pytest.raises(DataError, match=r"(cannot read the adapter|holds no mm_projector)"):
        adapter_weights(str(place))
    assert "code was run" not in capsys.readouterr().out


@pytest.mark.parametrize("names", [[], ["query"], ["layers.0.weight", "norm.weight"]])
def test_an_adapter_of_another_kind_is_no_projector(tmp_path, names):
    save_file({name: torch.zeros(3, 4) for name in names}, tmp_path / "adapter.safetensors")
    with pytest.raises(DataError, match="holds no mm_projector"):
        adapter(str(tmp_path), tmp_path / "mine", "mine")
    assert not (tmp_path / "mine").exists()


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
