"""All runs of the study, one after the other; what is done is passed over."""

from __future__ import annotations

from pathlib import Path

from scripts.nuclei.config import Config
from scripts.nuclei.images import read_images, split_by_likeness
from scripts.nuclei.mosaic import draw_mosaic
from scripts.nuclei.results import keep
from scripts.nuclei.training import train_run
from vnet.core.errors import stopping_at_once


def train_study(config: Config, results: Path) -> None:
    """Train the runs that `config` asks for and merge each into `results` as it ends."""
    with stopping_at_once():
        images = read_images(config.data)
        split = split_by_likeness(
            images, clusters=config.clusters, test=config.test_images, validation=config.validation_images
        )
        for part in ("train", "validation", "test"):
            rows = [row for row in split if row["part"] == part]
            groups = len({row["group"] for row in rows})
            nuclei = sum(int(str(row["nuclei"])) for row in rows)
            print(f"{part}: {len(rows)} images of {groups} groups, {nuclei} nuclei", flush=True)
        for run in config.runs():
            fresh = train_run(run, images)
            keep(run, split, results)
            print(f"{run.folder}: {'done' if fresh else 'was done before'}", flush=True)
        if draw_mosaic(config, images, split, results / "nuclei.png"):
            print(f"picture: {results / 'nuclei.png'}", flush=True)
