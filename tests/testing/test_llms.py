"""`check_llm`: language models of ours pass, one of plain torch passes, and what breaks a clause is said."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmalign.data import Turn
from mmalign.errors import CheckError
from mmalign.llms import LLM
from mmalign.llms.causal import CausalLM
from mmalign.llms.decoding import Rereading
from mmalign.llms.watch import Watch
from mmalign.testing import check_llm, small


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_causal_models_pass(tmp_path, family):
    checkpoint = small.llm_card(family, tmp_path).args["checkpoint"]
    check_llm(lambda: CausalLM(checkpoint), tmp_path, lambda folder: CausalLM(str(folder)))


def test_the_toy_llama_stored_in_bf16_passes(tmp_path):
    check_llm(
        lambda: CausalLM("pkg:mmalign.toyworld/llama"), tmp_path, lambda folder: CausalLM(str(folder)), answer="star"
    )


def test_one_of_plain_torch_passes(tmp_path, start):
    own = start("llm")
    assert not hasattr(own(), "lm")
    assert own.decoder is LLM.decoder
    check_llm(own, tmp_path, lambda folder: own(str(folder)))


def test_a_watchable_one_of_plain_torch_passes(tmp_path, start):
    own = watchable(start("llm"))
    check_llm(own, tmp_path, lambda folder: own(str(folder)))


def watchable(own):
    """The start, its layers watched by hooks; attention cannot be seen, and says so."""

    class Watchable(own):
        watchable = True

        def prepare_looks(self, looks):
            if any(look.attention for look in looks):
                raise CheckError("its attention is not seen")

        def watched(self, looks, places):
            return _Watched(self, Watch(places, tuple(looks)))

    return Watchable


class _Watched:
    def __init__(self, llm, watch):
        self.llm, self.watch, self.hooks = llm, watch, []

    def __enter__(self):
        sources = [*self.llm.layers[:-1], self.llm.norm]
        for number, source in enumerate(sources, 1):
            self.hooks.append(source.register_forward_hook(lambda _m, _a, out, n=number: self.shown(n, out)))
        return self.watch

    def shown(self, number, hidden_BSD):
        self.watch.layer(number, hidden_BSD)

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


# Each breaks one clause: attributes and methods laid over the start.


def scalar(base):
    def init(self, *args, **more):
        base.__init__(self, *args, **more)
        self.scale = nn.Parameter(torch.tensor(1.0))

    return {"__init__": init}


def over(name, change):
    """A method that changes what the start's gives."""

    def broken(base):
        return {name: lambda self, *given: change(getattr(base, name)(self, *given), *given)}

    return broken


def declared(**values):
    def init_of(base):
        def init(self, *args, **more):
            base.__init__(self, *args, **more)
            for name, value in values.items():
                setattr(self, name, value)

        return {"__init__": init}

    return init_of


def acausal(base):
    return {"forward": lambda self, e, m: base.forward(self, e, m) + e.mean(1, keepdim=True) * (m[:1, :1] > 0)}


def in_place(base):
    return {"forward": lambda self, e, m: base.forward(self, e.mul_(1.5), m)}


def random(base):
    return {"forward": lambda self, e, m: (h := base.forward(self, e, m)) + 0.1 * torch.rand_like(h)}


def right_only(base):
    """Positions counted from the row's first column, whatever is padded."""
    return {"forward": lambda self, e, m: base.forward(self, e, (m.flip(1).cummax(1).values.flip(1) > 0).long())}


def one_sample(base):
    return {"forward": lambda self, e, m: base.forward(self, e, (m > 0).long())}


def loose_head(base):
    return {"head": lambda self, hidden_ND: F.linear(hidden_ND, self.logits.weight)}


def detached_nll(base):
    return {"nll": lambda self, h, t, w: base.nll(self, h.detach(), t, w)}


def detached_kl(base):
    return {"kl": lambda self, h, *given: base.kl(self, h.detach(), *given)}


def mean_kl(base):
    return {"kl": lambda self, h, *given: base.kl(self, h, *given) / max(1, len(h))}


def turned_kl(base):
    """KL(p || target)."""

    def kl(self, h, rows, matrix, w):
        q, p = (one.float().log_softmax(-1) for one in (self.head(h), rows @ matrix.T))
        return ((q.exp() * (q - p)).sum(-1) * w).sum()

    return {"kl": kl}


def mean_nll(base):
    return {"nll": lambda self, h, t, w: base.nll(self, h, t, w) / max(1, len(t))}


def nan_of_nothing(base):
    return {"nll": lambda self, h, t, w: base.nll(self, h, t, w) / w.sum() * w.sum()}


def half_nll(base):
    return {"nll": lambda self, h, t, w: base.nll(self, h, t, w).to(h.dtype)}


def straight_through(base):
    def nll(self, h, t, w):
        return base.nll(self, h, t, w).detach() + base.nll(self, 2 * h, t, w) - base.nll(self, 2 * h, t, w).detach()

    return {"nll": nll}


class Forgets(Rereading):
    """Reads each piece as if it were the first."""

    def read(self, embeds_BTD, line):
        self.embeds_BSD = self.line = None
        return super().read(embeds_BTD, line)


class OneQuestion(Rereading):
    """Reads a row's questions one behind the other, as if they were one text."""

    def read(self, embeds_BTD, line):
        line.question_BS[line.question_BS > 0] = 1
        return super().read(embeds_BTD, line)


class Whole(Rereading):
    def read(self, embeds_BTD, line):
        super().read(embeds_BTD, line)
        return self.llm(self.embeds_BSD, self.line.real_BS.long())


def decoder(kind):
    return lambda base: {"decoder": lambda self: kind(self)}


def silent_template(base):
    def init(self, *args, **more):
        base.__init__(self, *args, **more)
        self.chat.template = self.chat.template.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")

    return {"__init__": init}


def trained_question(base):
    def init(self, *args, **more):
        base.__init__(self, *args, **more)
        marked = "{%- generation -%}{{- content -}}{%- endgeneration -%}"
        self.chat.template = self.chat.template.replace("'>' + content -}}", "'>' -}}" + marked)

    return {"__init__": init}


def endless(base):
    def init(self, *args, **more):
        base.__init__(self, *args, **more)
        self.chat.template = self.chat.template.replace("content + eos_token", "content")

    return {"__init__": init}


def few_rows(base):
    def init(self, *args, **more):
        base.__init__(self, *args, **more)
        self.words.weight = nn.Parameter(self.words.weight[:5].detach())
        self.logits.weight = nn.Parameter(self.logits.weight[:5].detach())
        self.vocab = 5

    return {"__init__": init}


def unwatched(base):
    return {"prepare_looks": lambda self, looks: None}


def grows(base):
    def prepare(self):
        self.extra = getattr(self, "extra", nn.ParameterList()).append(nn.Parameter(torch.ones(1)))

    return {"prepare_training": prepare}


def cut_off(base):
    return {"forward": lambda self, e, m: base.forward(self, e.detach(), m)}


def saves_nothing_new(base):
    return {"save": lambda self, folder, state=None: base.save(self, folder)}


def other_chat(base):
    def save(self, folder, state=None):
        base.save(self, folder, state)
        place = folder / "chat_template.jinja"
        place.write_text(place.read_text().replace("<assistant>", "<system>"))

    return {"save": save}


def forgets_weights(base):
    def save(self, folder, state=None):
        base.save(self, folder, {name: value * 0 for name, value in self.state_dict().items()})

    return {"save": save}


BROKEN = {
    "scalar": (scalar, "parameters without a dimension, .*: scale"),
    "depth": (declared(depth=0), "depth is 0"),
    "context": (declared(context=None), "context is None, not a whole number"),
    "chat": (declared(chat="USER:"), "chat is no mmalign.llms.chat.Chat"),
    "vocab": (declared(vocab=7), r"vocabulary\(\) is \(145, 64\), vocab and dim say \(7, 64\)"),
    "copy": (over("vocabulary", lambda table: table.clone()), r"vocabulary\(\) is a copy"),
    "flat": (over("embed", lambda e, ids: e.flatten(0, -2)), r"the output is \(6, 64\), declared was \(2, 3, 64\)"),
    "upcast": (over("embed", lambda e, ids: e.float()), "the output is torch.float32, the weights are torch.bfloat16"),
    "other rows": (over("embed", lambda e, ids: e.roll(1, -1)), r"embed\(\) and vocabulary\(\) disagree"),
    "narrow": (over("head", lambda logits, h: logits[:, 1:]), r"the output is \(5, 144\), declared was \(5, 145\)"),
    "centred": (over("head", lambda x, h: x - (x.mean(0) if len(x) else 0)), "a row's logits depend on the others"),
    "in place": (in_place, r"forward\(\) changes the embeddings"),
    "random": (random, "the same input gives another output in eval mode"),
    "acausal": (acausal, "a position sees what comes behind it"),
    "one sample": (one_sample, "packed, mask 1 and 2, a sample is not read as it is alone"),
    "left": (right_only, "padded on the left, a sample is not read as it is alone"),
    "loose head": (loose_head, r"head\(\) uses a weight outside of its module's forward"),
    "detached nll": (detached_nll, r"nll\(\) gives the hidden states no gradient"),
    "mean nll": (mean_nll, r"nll\(\) is not the sum of weight \* -log p"),
    "detached kl": (detached_kl, r"kl\(\) gives the hidden states no gradient"),
    "mean kl": (mean_kl, r"kl\(\) is not the sum of weight \* KL"),
    "turned kl": (turned_kl, r"kl\(\) is not the sum of weight \* KL\(target \|\| p\)"),
    "wrong gradient": (straight_through, r"the gradient of nll\(\) is not that of its definition"),
    "nan of nothing": (nan_of_nothing, r"nll\(\) without rows is nan, not 0"),
    "half nll": (half_nll, r"nll\(\) in bf16 is torch.bfloat16, not fp32"),
    "forgets": (decoder(Forgets), r"decoder\(\): questions behind one prefix, read in pieces"),
    "one question": (decoder(OneQuestion), r"decoder\(\): questions behind one prefix, read at once"),
    "whole": (decoder(Whole), r"decoder\(\).read\(\) gives \(2, 10, 64\) for new positions \(2, 6, 64\)"),
    "no marks": (silent_template, "the chat template marks no answers"),
    "trained question": (trained_question, "trained is '.*', the answer is 'red'"),
    "endless": (endless, "an answer would never end"),
    "few rows": (few_rows, "the tokenizer has ids .*, the vocabulary 5 rows"),
    "unwatched": (unwatched, r"watchable is False, but prepare_looks\(\) raises no CheckError"),
    "grows": (grows, r"prepare_training\(\) twice adds parameters"),
    "cut off": (cut_off, "no gradient reaches the embeddings"),
    "unwritten": (lambda base: {"checkpoint_activations": LLM.checkpoint_activations}, "is not written"),
    "stale": (saves_nothing_new, "a language model saved with trained weights differs"),
    "empty": (forgets_weights, "a saved language model differs"),
    "other chat": (other_chat, "a saved language model has another chat format"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_the_contract_is_said(tmp_path, start, name):
    change, said = BROKEN[name]
    base = start("llm")
    broken = type("Broken", (base,), change(base))
    with pytest.raises(AssertionError, match=said):
        check_llm(broken, tmp_path, lambda folder: broken(str(folder)))


def layers_lost(base):
    class Watched(_Watched):
        def shown(self, number, hidden_BSD):
            if number > 1:
                super().shown(number, hidden_BSD)

    return Watched


def without_norm(base):
    class Watched(_Watched):
        def shown(self, number, hidden_BSD):
            super().shown(number, hidden_BSD + (number == 2))

    return Watched


@pytest.mark.parametrize(
    ("kind", "said"),
    [(layers_lost, "1 layers are shown, depth is 2"), (without_norm, "the last layer shown is not what forward")],
)
def test_what_breaks_watching_is_said(tmp_path, start, kind, said):
    base = watchable(start("llm"))
    watched = kind(base)
    more = {"watched": lambda self, looks, places: watched(self, Watch(places, tuple(looks)))}
    broken = type("Broken", (base,), more)
    with pytest.raises(AssertionError, match=said):
        check_llm(broken, tmp_path, lambda folder: broken(str(folder)))


def test_what_is_saved_is_read_by_the_argument_checkpoint(tmp_path, start):
    """A class that takes no notice of its checkpoint gives other weights, and says so."""
    own = start("llm")
    with pytest.raises(AssertionError, match="a language model saved with trained weights differs"):
        check_llm(own, tmp_path, lambda folder: own())


def test_a_start_that_was_saved_says_what_it_is(tmp_path, start):
    own = start("llm")
    own(dim=32, depth=1, heads=2).save(tmp_path)
    assert json.loads((tmp_path / "own_llm.json").read_text()) == {"dim": 32, "depth": 1, "heads": 2, "context": 512}
    again = own(str(tmp_path))
    assert (again.dim, again.depth) == (32, 1)
    ids = torch.tensor([again.chat.prompt([Turn("user", "what color is the star?")])])
    assert F.softmax(again.head(again(again.embed(ids), torch.ones_like(ids))[0]), -1).isfinite().all()
