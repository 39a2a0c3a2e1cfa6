"""Other people's trainers take an export two steps further: LLaMA-Factory and ms-swift, where their commands are.

They want other versions than ours. Each is installed in an environment of its own, whose bin folder comes into PATH,
one at a time:
`PATH=ENV/bin:$PATH pytest -m slow tests/integrations/test_peers.py`.
"""

import json
import os
import shutil
import subprocess

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mmalign.adapters.mlp import MLP
from mmalign.llms.causal import CausalLM
from mmalign.stages import export
from mmalign.vision.hf import HFVision
from mmalign.vlm.model import VLM
from tests import parts

pytestmark = pytest.mark.slow
STEPS = {"max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-3, "logging_steps": 1}
FACTORY = {
    "stage": "sft", "do_train": True, "finetuning_type": "full", "template": "llava", "dataset": "rows",
    "dataset_dir": ".", "cutoff_len": 256, "use_cpu": True, "overwrite_output_dir": True,
}  # fmt: skip
ROWS = {
    "file_name": "rows.json", "formatting": "sharegpt", "columns": {"messages": "messages", "images": "images"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}  # fmt: skip
SWIFT = {
    "model_type": "llava1_5_hf", "template": "llava1_5_hf", "tuner_type": "full", "torch_dtype": "float32",
    "dataset": "rows.json", "max_length": 256, "use_hf": "true",
}  # fmt: skip


@pytest.fixture(scope="module", params=[parts.clip, parts.siglip], ids=["clip", "siglip"])
def place(request, tmp_path_factory):
    """A folder with an export, four pictures and four questions about them."""
    folder = tmp_path_factory.mktemp("peers")
    encoder = HFVision(str(request.param(tmp_path_factory.mktemp("tower"))))
    llm = CausalLM(str(parts.llm("llama", tmp_path_factory.mktemp("llama"))))
    export.export(VLM(encoder, MLP(encoder.dim, llm.dim, encoder.grid), llm).eval(), None, folder / "exported")
    rows = []
    for number in range(4):
        Image.new("RGB", (50 + number, 40), (60 * number, 90, 200)).save(folder / f"{number}.png")
        asked = {"role": "user", "content": "<image>What colour is it?"}
        turns = [asked, {"role": "assistant", "content": f"It is colour {number}."}]
        rows.append({"messages": turns, "images": [str(folder / f"{number}.png")]})
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({"rows": ROWS}))
    return folder


def trained(place, command, *arguments):
    """Weights before and after the command's two steps, by name."""
    if shutil.which(command) is None:
        pytest.skip(f"no {command} in PATH")
    quiet = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    called = [command, *arguments]
    done = subprocess.run(called, cwd=place, env=os.environ | quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    after = max((place / f"{command}-out").rglob("model.safetensors"), key=lambda file: len(file.parts))
    return load_file(place / "exported" / "model.safetensors"), load_file(after)


def moved(before, after):
    """Names of the language model's weights, called alike by all, that training changed."""
    return [name for name in before if name in after and not torch.equal(before[name].float(), after[name].float())]


def test_llama_factory_trains_an_export(place):
    told = FACTORY | STEPS | {"model_name_or_path": "exported", "output_dir": "llamafactory-cli-out"}
    (place / "train.yaml").write_text(json.dumps(told))  # JSON is YAML, and 0.9.5 reads no .json
    assert moved(*trained(place, "llamafactory-cli", "train", "train.yaml"))


def test_ms_swift_trains_an_export(place):
    told = SWIFT | STEPS | {"model": "exported", "output_dir": "swift-out"}
    arguments = [word for name, value in told.items() for word in (f"--{name}", str(value))]
    assert moved(*trained(place, "swift", "sft", *arguments))
