"""Download of Medical Segmentation Decathlon tasks from the addresses that MONAI lists."""

from __future__ import annotations

import logging
import shutil
import socket
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vnet.core.errors import InputError

SECONDS_OF_SILENCE = 30.0


def download_task(task: str, output: Path | str) -> Path:
    """Folder of a task, downloaded and unpacked; the folder appears when it is complete.

    Args:
        task: as `Task04_Hippocampus`, or its number or name alone.
        output: folder in which the task's folder is made.

    Returns:
        The task's folder.

    Raises:
        InputError: no such task, no network, a damaged download, or a folder that is there already.
    """
    from monai.apps.datasets import DecathlonDataset

    known: dict[str, str] = DecathlonDataset.resource
    name = find_task(task, list(known))
    target = Path(output) / name
    if target.exists():
        raise InputError(f"{target}: is there already; name another folder or remove it")
    part = Path(output) / f".{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        fetch(name, known[name], DecathlonDataset.md5[name], part)
        (part / "unpacked" / name).replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def find_task(task: str, known: list[str]) -> str:
    """The full name of a task given by name, number or both, in any case."""
    wanted = task.lower().removeprefix("task").lstrip("0")
    for name in known:
        number, _, organ = name.lower().removeprefix("task").lstrip("0").partition("_")
        if wanted and wanted in (number, organ, f"{number}_{organ}"):
            return name
    raise InputError(f"no Decathlon task {task!r:.80}; name one of {', '.join(known)}")


def fetch(name: str, url: str, md5: str, folder: Path) -> None:
    """Download the archive of a task into `folder` and unpack it there."""
    from monai.apps.utils import download_url, extractall

    archive = folder / "archive" / f"{name}.tar"
    mend = f"check the network, or download it yourself and unpack it in {folder.parent}"
    try:
        with quiet_monai():
            print(f"downloading {url}", flush=True)
            download_url(url, archive, hash_val=md5, hash_type="md5", progress=False)
            extractall(archive, folder / "unpacked", has_base=False)
    except (OSError, RuntimeError, ValueError, tarfile.TarError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{url}: cannot be fetched ({reason}); {mend}") from None
    if not (folder / "unpacked" / name / "dataset.json").is_file():
        raise InputError(f"{url}: the archive holds no {name}/dataset.json; {mend}")


@contextmanager
def quiet_monai() -> Iterator[None]:
    """Keep MONAI's log off stderr, and end a download after 30 seconds without data."""
    logger, before = logging.getLogger("monai.apps"), socket.getdefaulttimeout()
    disabled, logger.disabled = logger.disabled, True
    socket.setdefaulttimeout(SECONDS_OF_SILENCE)
    try:
        yield
    finally:
        logger.disabled = disabled
        socket.setdefaulttimeout(before)
