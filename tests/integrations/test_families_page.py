"""The table of families in the docs says what the models say, and what was done with each of them here."""

import copy
from pathlib import Path

import pytest
import torch
from PIL import Image

import mmalign
from mmalign.data import MARK, Turn
from mmalign.errors import CheckError
from mmalign.integrations import declared, layouts
from mmalign.integrations.whole import WholeVLM
from tests.integrations import families
from tests.integrations.test_declared import by_hand, picture
from tests.integrations.test_layouts import grey, shallow, tokens
from tests.integrations.test_supervising import fresh, labelled
from tests.integrations.test_supervising_trainer import labeller, same
from tests.integrations.test_whole import by_transformers

PAGE = Path(__file__).parents[2] / "docs" / "vision-language-models.md"
ROWS = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
SIZE = (160, 80)
SOME = [("what is this ?", [(40, 30)]), ("is it red ?", [(20, 50)])]


def evaluate(family, place):
    """The greedy answer is that of `generate`."""
    vlm, image = WholeVLM(*fresh(family)), picture(40, 30)
    (said,) = vlm.generate([[Turn("user", f"{MARK}\nwhat is this ?")]], [[image]], 8)
    assert said == by_transformers(vlm, "what is this ?", [image])


def inspect(family, place):
    """Hidden states of an image are those of `output_hidden_states`."""
    model, processor = fresh(family)
    vlm, image = WholeVLM(model, processor), picture(40, 30)
    text = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])
    inputs = processor(text=[text], images=[[image]], return_tensors="pt")
    inputs.pop("labels", None)
    _, out = by_hand(model, inputs)
    at_S = inputs["input_ids"][0] == model.config.image_token_id
    for layer, hidden_BQD in vlm.hidden_states(image).items():
        assert torch.allclose(hidden_BQD[0], out.hidden_states[layer][0, at_S], atol=1e-5), layer


def stepped(model, processor, objectives):
    """One step of plain gradient descent; the terms."""
    labels = labeller() if "sea" in objectives else None
    supervised = mmalign.supervise(model, processor, objectives, labels=labels)
    sizes = torch.tensor([size[::-1] for _, own in SOME for size in own])  # of a picture in tiles: where they lie
    terms = supervised(**labelled(model, processor, SOME), picture_sizes=sizes)
    terms["loss"].backward()
    torch.optim.SGD([p for p in supervised.parameters() if p.requires_grad], lr=1e-3).step()
    return {name: term.item() for name, term in terms.items()}


def basic(family, place):
    terms = stepped(*fresh(family), {"basic-direction": 1.0, "basic-distribution": 0.01})
    assert min(terms.values()) > 0


def sea(family, place):
    assert stepped(*fresh(family), {"sea": 1.0})["sea"] > 0


def lora(family, place):
    """It is learned, saved, and lies around the untouched model again."""
    peft = pytest.importorskip("peft")
    model, processor = fresh(family)
    tuned = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    stepped(tuned, processor, {"basic-direction": 1.0})
    assert any(weight.any() for name, weight in tuned.named_parameters() if "lora_B" in name)
    tuned.save_pretrained(place)
    same(tuned, peft.PeftModel.from_pretrained(fresh(family)[0], place), labelled(tuned, processor, SOME))


def export(family, place):
    """What a supervised run leaves is a checkpoint of the model's own class."""
    model, processor = fresh(family)
    before = copy.deepcopy(model.get_output_embeddings().weight)
    stepped(model, processor, {"basic-direction": 1.0})
    assert not torch.equal(model.get_output_embeddings().weight, before)
    model.save_pretrained(place)
    same(model, type(model).from_pretrained(place), labelled(model, processor, SOME))


DONE = (evaluate, inspect, basic, sea, lora, export)


def works(what, family, place):
    """Whether it is done, right; it may be refused in a line, and nothing else."""
    try:
        what(family, place)
    except CheckError:
        return "no"
    return "yes"


def row(family, place):
    model, processor = shallow(family)
    parts = declared.parts(model, processor)
    (all_QD,) = tokens(model, processor, [Image.fromarray(grey(*SIZE))])
    views, fixed = layouts.views(parts, SIZE, len(all_QD)), layouts.fixed(parts)
    lie = "not known"
    if views:
        lie = "all of it, and tiles" if len(views) > 1 else "one square" if fixed else "any size"
    declares = (family, f"always {fixed}" if fixed else "by its size", lie, "yes" if fixed and views else "no")
    cells = (*declares, *(works(what, family, place / what.__name__) for what in DONE))
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize(("line", "family"), zip(ROWS, [*families.FAMILIES, *families.MORE], strict=True))
def test_a_row(line, family, tmp_path):
    assert line == row(family, tmp_path)
