"""Stages that this machine computes far slower than it could, which a plan tells beforehand."""

from collections.abc import Iterable, Iterator

from mmalign.io import processor
from mmalign.plan.graph import Node


def notes(nodes: Iterable[Node]) -> Iterator[str]:
    """One on the stages in bf16 that are not done, where no GPU is here and the CPU has no instructions for bf16."""
    names = [node.name for node in nodes if not node.done and getattr(node.stage, "precision", None) == "bf16"]
    if names and processor.lacks_bf16():
        names = list(dict.fromkeys(names))
        fix = " ".join(f"stages.{name}.precision=fp32" for name in names)
        yield f"{', '.join(names)}: bf16 is several times slower than fp32 on this CPU, and no GPU is here   {fix}"
