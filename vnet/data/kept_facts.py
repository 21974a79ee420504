"""Facts of cases kept in the cache folder, so that a later start reads headers only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from vnet.core.files import write_text
from vnet.data.dataset import Dataset
from vnet.data.facts import CaseFacts
from vnet.data.fingerprints import Fingerprint

FORMAT = 3  # of the kept facts


def kept_file(dataset: Dataset, cache: Path) -> Path:
    """Where the facts of a data set are kept: one file per folder and list of files."""
    key = json.dumps([str(dataset.root.resolve()), [[str(path) for path in case.files] for case in dataset.cases]])
    return cache / f"checked_{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def load_kept(path: Path | None) -> dict[str, tuple[Fingerprint, CaseFacts]]:
    """Facts of an earlier start; none where the file is missing, damaged or of another format."""
    try:
        plain = json.loads(path.read_text()) if path is not None else {}
        if plain.get("format") != FORMAT:
            return {}
        return {
            name: ([(size, time) for size, time in entry["fingerprint"]], CaseFacts.from_dict(entry["facts"]))
            for name, entry in plain["cases"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def save_kept(path: Path, sound: Mapping[str, tuple[Fingerprint, CaseFacts]]) -> None:
    """Write the facts of sound cases with the fingerprints of their files."""
    cases = {name: {"fingerprint": files, "facts": fact.to_dict()} for name, (files, fact) in sound.items()}
    write_text(path, json.dumps({"format": FORMAT, "cases": cases}))
