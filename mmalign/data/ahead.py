"""How much of a check of data is left: an image of several records is decoded once, so records come ever faster."""

import math

ROWS = 20  # records are read in the time that one image takes to decode, about


class Ahead:
    """Work done and in all, told from what was done so far. total: records."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.seen: list[tuple[int, int]] = [(0, 0)]  # records, images decoded: after each chunk

    def work(self, rows: int, decoded: int) -> tuple[int, int]:
        """Done and in all, in records, an image counting as ROWS of them. decoded: images so far, in `rows` records.

        The share of records with a new image is taken to fall on as it fell from the older to the newer half of those
        seen: geometrically, as it does where images repeat at random. Where they repeat side by side, it stays.
        """
        self.seen.append((rows, decoded))
        middle, until = min(self.seen, key=lambda point: abs(point[0] - rows / 2))
        older, newer = until / max(1, middle), (decoded - until) / max(1, rows - middle)
        kept = min(1.0, max(1e-9, newer / older)) if older else 1.0  # of the share, a half later
        halves = (self.total - rows) / (rows / 2)
        # the integral of newer * kept ** t over the halves to come, counted from the middle of the newer one
        fall = halves if kept > 1 - 1e-6 else (kept**0.5 - kept ** (halves + 0.5)) / -math.log(kept)
        to_come = newer * rows / 2 * fall
        return rows + ROWS * decoded, round(self.total + ROWS * (decoded + to_come))
