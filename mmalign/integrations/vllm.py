"""An exported model inside vLLM: the prompts of `mmalign eval`, answered by another engine.

Greedy, in bf16 and by vLLM's own kernels: where two tokens are nearly as likely, an answer may not be the one that our
engine gives, which is exact in fp32.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoProcessor

from mmalign.benchmarks import Benchmark, Cut, Probe, Question
from mmalign.errors import CheckError, RunError
from mmalign.integrations.weight_names import IDENTITY
from mmalign.io import sums
from mmalign.llms.rendering import render
from mmalign.vision.picture import rgb


def check(benches: Iterable[Benchmark | Probe]) -> None:
    """CheckError for what is no question answered in words; ask before a model is loaded."""
    for bench in benches:
        if isinstance(bench, Probe) or any(one.options or one.plain for one in bench.questions()):
            what = f"{type(bench).__name__} looks inside the model, and inside vLLM only answers in words can be had"
            raise CheckError(what, fix="leave out --vllm")


class VLLM:
    """spec: a folder that `mmalign export` wrote and plain transformers loads."""

    def __init__(self, spec: str) -> None:
        library = _library()
        self.spec = spec
        self.sampling: Any = library.SamplingParams
        try:
            with sums.verifying(sums.read(Path(spec)), sums.AGAIN):
                self.processor: Any = AutoProcessor.from_pretrained(spec)
                one_layer = getattr(AutoConfig.from_pretrained(spec), "projector_hidden_act", "") == "linear"
                self.llm: Any = library.LLM(
                    model=spec,
                    dtype="bfloat16",
                    limit_mm_per_prompt={"image": 1},
                    hf_overrides=IDENTITY if one_layer else {},
                )
        except (ValueError, RuntimeError, NotImplementedError) as err:
            reason = (str(err).strip() or type(err).__name__).splitlines()[0]
            raise RunError(f"vLLM cannot load the model: {reason}", at=spec, fix="leave out --vllm") from err

    def answers(self, bench: Benchmark, questions: Sequence[Question], batch: int) -> Iterator[tuple[Question, str]]:
        """(question, answer), `batch` questions at a time. What prompts have in common, vLLM itself reads once."""
        greedy = self.sampling(temperature=0.0, max_tokens=bench.max_new_tokens)
        for start in range(0, len(questions), batch):
            part = questions[start : start + batch]
            outputs = self.llm.generate([self._prompt(bench, one) for one in part], greedy, use_tqdm=False)
            yield from ((one, _text(output.outputs[0])) for one, output in zip(part, outputs, strict=True))

    def _prompt(self, bench: Benchmark, question: Question) -> dict[str, Any]:
        """Token ids, as the exported template spells them, with one mark for the image: vLLM puts its tokens there."""
        seen = question.image is not None
        content = [{"type": "image"}] * seen + [{"type": "text", "text": question.text}]
        tokenizer, turns = self.processor.tokenizer, [{"role": "user", "content": content}]
        words = {"add_generation_prompt": True, **tokenizer.special_tokens_map}
        text, _ = render(self.processor.chat_template, turns, words, self.spec)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        image = {"multi_modal_data": {"image": rgb(bench.image(question.image))}} if seen else {}
        return {"prompt_token_ids": ids, **image}


def _text(output: Any) -> str:
    """An answer; Cut where vLLM says that it ended for its length."""
    text = str(output.text).strip()
    return Cut(text) if getattr(output, "finish_reason", None) == "length" else text


def _library() -> Any:
    try:
        import vllm
    except ImportError as err:
        raise RunError("answers inside vLLM need the package vllm", fix="pip install mmalign[vllm]") from err
    return vllm
