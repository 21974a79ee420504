"""What a run notes of its environment holds no folder of the machine."""

from __future__ import annotations

from vnet.core.environment import portable_command


def test_a_noted_command_holds_no_folder_of_the_machine():
    words = "train --config /home/me/mine.yaml --data.root /scan/Task09_Spleen --run_root=/scratch/x --data.cache /c"
    assert portable_command([*words.split(), "--arm", "dense", "--training.steps=5"]) == (
        "vnet train --config mine.yaml --data.root DATA/Task09_Spleen --arm dense --training.steps=5"
    )
    assert portable_command(["train", "--config", "configs/a.yaml"]) == "vnet train --config configs/a.yaml"
