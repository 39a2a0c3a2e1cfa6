"""What a stage did not train on as it stands: samples left out, and answers cut at max_length; counted, and said."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmalign.data.reasons import REASONS
from mmalign.io import files

CUTS = ("cut_samples", "cut_tokens")  # in the log: samples whose answers are cut, trained tokens lost; added up
SHARE = 0.01  # of the samples a stage trained on: where more are cut, it warns


def of(folder: Path, samples: int, max_length: int, bad: Mapping[str, str], left_out: int) -> dict[str, Any]:
    """For stage.json: {bad, bad_reasons, cut, account, warnings}; account: lines that say the rest.

    folder: of the stage, whose log counts the cuts, also those before it was resumed. samples: trained on, a sample as
    often as it was seen. bad: {sample: reason}. left_out: rows that a quarantine names.
    """
    lines = files.read_jsonl(folder / "metrics.jsonl", kind=dict[str, float]) if folder.exists() else []
    cut, lost = (int(sum(line.get(name, 0) for line in lines)) for name in CUTS)
    reasons = Counter(map(_reason, bad.values()))
    said = []
    if bad:
        why = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        said.append(f"{len(bad):,} unusable samples were left out ({why}), see {folder.name}/bad.jsonl")
    if left_out:
        said.append(f"{left_out:,} rows were left out by the quarantine")
    if cut:
        said.append(
            f"{cut:,} of {samples:,} samples were cut at max_length {max_length:,}: {lost:,} trained tokens lost"
        )
    warnings = [f"{said[-1]}; raise max_length"] if cut > SHARE * samples else []
    return {
        "bad": len(bad),
        "bad_reasons": dict(reasons.most_common()),
        "cut": {"samples": cut, "tokens": lost, "of": samples},
        "account": said[: len(said) - len(warnings)],
        "warnings": warnings,
    }


def _reason(what: str) -> str:
    word = what.partition(":")[0]
    return word if word in REASONS else "other"
