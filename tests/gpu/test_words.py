"""Labels on a GPU: the nearest words of all are fp64's, and a random CLIP's pictures get those of the CPU.

Letters: N patches, W words, J width of the joint space, K words kept.
"""

import pytest
import torch
from torch.nn.functional import normalize

from mmalign.labels import PatchLabels
from mmalign.labels.rank import Bank
from mmalign.labels.words import NearestWords
from mmalign.objectives.sea import draw, sea_loss
from mmalign.vision.hf import HFVision
from tests import parts
from tests.speed.topn import cone
from tests.vlm.test_model import picture

pytestmark = pytest.mark.gpu
CLOSE = 1e-6  # cosines nearer to each other than this may change places


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("words", "width", "centred"), [(9_000, 768, True), (9_000, 96, False), (300, 64, True)])
def test_the_best_words_are_those_of_fp64(device, sign, words, width, centred):
    g = torch.Generator().manual_seed(1)
    text_WJ, patch_NJ = cone(words, width=width), normalize(torch.randn(700, width, generator=g), dim=-1)
    mean_W = 0.1 * torch.rand(words, generator=g) if centred else None
    bank = Bank.of(text_WJ, mean_W, sign).to(device)
    words_NK, scores_NK = bank.best(patch_NJ.to(device), 10)
    exact_NW = sign * (patch_NJ.double() @ text_WJ.double().T - (0 if mean_W is None else mean_W.double()))
    best = exact_NW.topk(11, dim=1)
    assert torch.allclose(scores_NK.cpu().double(), best.values[:, :10], atol=CLOSE)
    assert torch.allclose(exact_NW.gather(1, words_NK.cpu()), best.values[:, :10], atol=CLOSE)
    gaps = best.values[:, :-1] - best.values[:, 1:] > 2 * CLOSE
    clear = gaps & torch.cat([torch.ones_like(gaps[:, :1]), gaps[:, :-1]], 1)
    assert clear.float().mean() > 0.9
    assert torch.equal(words_NK.cpu()[clear], best.indices[:, :10][clear])


def test_the_bank_made_on_the_gpu_ranks_alike(device):
    text_WJ, patch_NJ = cone(5_000, width=128), normalize(torch.randn(50, 128), dim=-1).to(device)
    there, here = Bank.of(text_WJ.to(device)), Bank.of(text_WJ).to(device)
    assert torch.allclose(there.best(patch_NJ, 5)[1], here.best(patch_NJ, 5)[1], atol=CLOSE)


def test_a_random_clip_labels_as_on_the_cpu(device, tmp_path, monkeypatch):
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "words.txt").write_text("\n".join(["red", "star", "ring", "blue", "photograph", "ice cream"]))
    eye = HFVision(str(parts.clip(tmp_path / "clip"))).eval()
    pixels_B3SS = torch.stack([eye.pixels(picture(n)) for n in range(3)])
    labelled = []
    for place in (torch.device("cpu"), device):
        eye.to(place)
        source = NearestWords(eye, str(tmp_path / "words.txt"), keep=4, center=3)
        with torch.no_grad():
            dense_BPJ = eye.both(pixels_B3SS.to(place))[1]
        source.prepare(lambda: (), lambda count: [(dense_PJ, "") for dense_PJ in dense_BPJ])  # noqa: B023
        labelled.append([t.cpu() for t in source.to(place).label(dense_BPJ.flatten(0, 1))])
    (_, want), (_, scores) = labelled
    assert torch.allclose(scores, want, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sea_loss_against_pairs_written_out(device, dtype):
    g = torch.Generator().manual_seed(2)
    words = [str(n) for n in range(50)]
    numbers, scores = torch.randint(50, (3, 25, 4), generator=g), torch.rand(3, 25, 4, generator=g) - 0.3
    labels = PatchLabels(words, numbers, scores, (5, 5))
    tokens_BQD = torch.randn(3, 25, 32, generator=g).to(device, dtype).requires_grad_()
    text_WD = torch.randn(50, 32, generator=g).to(device)
    seeded = lambda: torch.Generator(device).manual_seed(7)  # noqa: E731
    loss = sea_loss(tokens_BQD, labels, text_WD, generator=seeded())
    loss.backward()
    patch_N, word_N = draw(labels.to(device).at, 3, (5, 5), 2, seeded())
    assert len(set(word_N.tolist())) == len(word_N) > 9
    exact = tokens_BQD.detach().double().requires_grad_()
    want = 0.0
    alike = [[torch.dot(normalize(exact.flatten(0, 1)[p], dim=0), normalize(text_WD[w].double(), dim=0)) / 0.07
              for w in word_N.tolist()] for p in patch_N.tolist()]  # fmt: skip
    for i in range(len(alike)):
        row, column = torch.stack(alike[i]), torch.stack([other[i] for other in alike])
        want = want - (row.log_softmax(0)[i] + column.log_softmax(0)[i]) / (2 * len(alike))
    want.backward()
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    assert torch.allclose(tokens_BQD.grad.double(), exact.grad, atol=1e-5 if dtype == torch.float32 else 2e-3)


def test_sea_loss_draws_from_the_devices_own_generator(device):
    labels = PatchLabels(["a", "b"], torch.randint(2, (1, 9, 2)), torch.rand(1, 9, 2), (3, 3))
    tokens_BQD, text_WD = torch.randn(1, 9, 8, device=device), torch.randn(2, 8, device=device)
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(sea_loss(tokens_BQD, labels, text_WD).item())
    assert losses[0] == losses[1]
