"""How likely the options of a question are, all of them read in one pass behind what they share.

Letters: N texts, S positions, D width of the language model, V its vocabulary.
"""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from mmalign.llms import LLM
from mmalign.vlm.prefix import Group, Pass


def likelihoods(
    llm: LLM, groups: Sequence[Group], options: Sequence[Sequence[list[int]]]
) -> list[list[tuple[float, bool]]]:
    """(log-probability, whether it is the greedy answer) of each question's options, sums over their tokens.

    options: of every question of the groups, in order, the token ids of each option. Every option is read behind its
    question, but for its last token; what options have in common is read once.
    """
    rest, longer, texts_before = iter(options), list[Group](), 0
    wanted: list[tuple[int, list[int]]] = []  # of every option, which text it is read behind, and its token ids
    for group in groups:
        texts: dict[tuple[int, ...], int] = {}
        for number, own in enumerate(group.rests):
            for option in next(rest):
                place = texts.setdefault((number, *own, *option[:-1]), len(texts))
                wanted.append((texts_before + place, option))
        longer.append(Group(group.prefix, [list(ids) for _, *ids in texts], group.visual_QD))
        texts_before += len(texts)
    prompts = Pass(llm, longer)
    hidden_BSD = prompts.read()
    sums = torch.zeros(len(wanted), device=hidden_BSD.device)
    greedy = torch.ones(len(wanted), dtype=torch.bool, device=hidden_BSD.device)
    for back in range(max(len(option) for _, option in wanted)):
        logp_NV = F.log_softmax(llm.head(prompts.behind(hidden_BSD, back)).float(), dim=-1)
        long = [(n, row, option[-1 - back]) for n, (row, option) in enumerate(wanted) if len(option) > back]
        at, row, token = torch.tensor(long, device=hidden_BSD.device).T
        sums[at] += logp_NV[row, token]
        greedy[at] &= logp_NV.argmax(-1)[row] == token
    flat = iter(zip(sums.tolist(), greedy.tolist(), strict=True))
    return [[next(flat) for _ in own] for own in options]
