"""What a readout's ceiling says: whether a layer can be read so at all."""

LEGIBLE = 0.5  # of perfect visual tokens read right, at least


def legible(ceiling: float | None) -> bool:
    """ceiling: a share; None: not measured, for nothing lies between the tokens and the words."""
    return ceiling is None or ceiling >= LEGIBLE


def told(ceiling: float | None) -> str:
    """A remark for a reader; empty where there is nothing to say."""
    if ceiling is None:
        return ""
    remark = f"{ceiling:.0%} of perfect tokens are read right"
    return remark if legible(ceiling) else f"{remark}: cannot be read so"
