"""A loss is a scalar with a gradient."""

import torch
from mmalign.objectives import Step
from {{ module }} import {{ cls }}


def test_scalar_with_gradient():
    visual = torch.randn(2, 9, 8, requires_grad=True)
    loss = {{ cls }}()(Step(visual_BPD=visual, grid=(3, 3)))
    loss.backward()
    assert loss.shape == ()
    assert visual.grad is not None
