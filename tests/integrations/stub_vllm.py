"""What mmalign calls of vLLM, done by transformers one prompt at a time; tests put it in vLLM's place."""

from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration


class SamplingParams:
    def __init__(self, temperature: float, max_tokens: int) -> None:
        assert temperature == 0.0
        self.max_tokens = max_tokens


class LLM:
    def __init__(
        self, model: str, dtype: str, limit_mm_per_prompt: dict[str, int], hf_overrides: dict[str, str]
    ) -> None:
        assert (dtype, limit_mm_per_prompt) == ("bfloat16", {"image": 1})
        self.overrides = hf_overrides
        self.model: Any = LlavaForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
        self.processor: Any = AutoProcessor.from_pretrained(model)

    def generate(self, prompts: list[dict[str, Any]], params: SamplingParams, use_tqdm: bool) -> list[Any]:
        return [SimpleNamespace(outputs=[self._said(one, params)]) for one in prompts]

    def _said(self, prompt: dict[str, Any], params: SamplingParams) -> SimpleNamespace:
        """The one mark becomes as many as the image has visual tokens, as vLLM's processor does it."""
        seen, mark = prompt.get("multi_modal_data", {}).get("image"), self.model.config.image_token_id
        ids, given = prompt["prompt_token_ids"], {}
        assert ids.count(mark) == (seen is not None)
        if seen is not None:
            given = self.processor.image_processor(images=seen, return_tensors="pt")
            tokens = self.model.get_image_features(**given, return_dict=True).pooler_output[0].shape[-2]
            ids = [one for i in ids for one in [i] * (tokens if i == mark else 1)]
        made = self.model.generate(torch.tensor([ids]), **given, max_new_tokens=params.max_tokens, do_sample=False)
        ended = int(made[0, -1]) == self.model.generation_config.eos_token_id
        text = self.processor.tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True)
        return SimpleNamespace(text=text, finish_reason="stop" if ended else "length")
