"""Every figure of Dice, distance and difference in README.md, docs/ and results/LOG.md is that of results/.

A figure is found by its form: Dice and differences of Dice stand without the leading zero (.8708, +.0128). It is
accounted for in one of three ways: its table follows a comment `<!-- figures: STUDY folds 1 2 3 -->`, its sentence
stands in `SENTENCES`, or a dagger marks it as one whose raw data are not kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.pages import (
    LOG,
    PAGES,
    ROOT,
    MarkdownTable,
    cells,
    change,
    dice,
    expected_row,
    figures,
    interval,
    one_line,
    prose,
    tables,
)
from vnet.evaluation.statistics import noninferiority
from vnet.report.curves import RISE

MAIN = figures("study_hippocampus", 1, 2, 3)
CHOICE = figures("study_hippocampus", 0)
LONG = figures("hippocampus", 0)  # 1000 steps, fold 0
SEEDS = figures("study_seeds", 1)
EQUAL_TIME = figures("study_equal_time", 0)
ABLATIONS = figures("ablations", 0)
PHANTOMS = figures("study_phantoms", 0, 1, 2)
CONVERGED = figures("study_converged", 1, 2, 3, seeds=(0, 1))  # the seeds that are complete
CONTROLS = figures("controls", 0)
CONVERGED_ARMS = ("dense", "lean_s4", "lean_dense", "pointrend_s4", "coarse_s4", "dense_points", "thin_s4")
LEAN_DENSE = "lean_s4 - dense"
S2_COARSE, S4_COARSE = "pointrend_s2 - coarse_s2", "pointrend_s4 - coarse_s4"
S1_DENSE, S2_DENSE, S4_DENSE = "pointrend_s1 - dense", "pointrend_s2 - dense", "pointrend_s4 - dense"


def mean(comparison: str) -> str:
    """The mean difference of the study."""
    return change(MAIN.summary(comparison).mean)


def cases(comparison: str) -> str:
    """The study's interval over cases."""
    summary = MAIN.summary(comparison)
    return interval(summary.low, summary.high)


def trainings(comparison: str) -> str:
    """The study's interval over trainings."""
    return interval(*MAIN.over_trainings(comparison))


def control(arm: str, base: str = "dense") -> float:
    """The mean difference of a control from its base, on the fold of choices."""
    return float(CONTROLS.summary(f"{arm} - {base}").mean)


def converged(comparison: str) -> str:
    """A difference of the converged study, with its interval over subjects."""
    summary = CONVERGED.summary(comparison)
    return f"{change(summary.mean)} (95 % interval {interval(summary.low, summary.high)}"


def readme() -> list[str]:
    assert CONVERGED.summary(LEAN_DENSE).runs == 6  # from six on the interval is over trainings as well
    return [
        f"`{LEAN_DENSE}` is {converged(LEAN_DENSE)}, over subjects and the six trainings): "
        f"{noninferiority(CONVERGED.summary(LEAN_DENSE), 0.005)} by 0.005, a margin",
        f"`{S4_COARSE}` is {converged(S4_COARSE)}).",
    ]


def glossary() -> list[str]:
    return [f"written without the leading zero ({dice(MAIN.mean('dense', 'dice'))})"]


def results() -> list[str]:
    long_dense, short_s2 = LONG.mean("dense", "dice"), CHOICE.mean("pointrend_s2", "dice")
    spreads = {dice(SEEDS.spread(comparison).sd) for comparison in (S2_COARSE, S2_DENSE)}
    smallest, largest = (MAIN.third_by_volume(S2_COARSE, third) for third in (0, 2))
    by_arm = {arm: [dice(SEEDS.mean(arm, "dice", seed=seed)) for seed in (0, 1, 2)] for arm in TIMED[:3]}
    by_seed = [f"`{arm}` {'has ' if arm == 'dense' else ''}{a}, {b} and {c}" for arm, (a, b, c) in by_arm.items()]
    rises = {arm: CONVERGED.rise(arm, 1500, 2000) for arm in CONVERGED_ARMS}
    rising = {arm: rise for arm, rise in rises.items() if rise > RISE}
    assert set(rises) - set(rising) == {"dense_points"}
    pairs = CONVERGED.differences(LEAN_DENSE).groupby(["fold", "seed"])["difference"].mean()
    others = pairs.drop((2, 1))
    lean, head, dense = (
        [CONVERGED.volume_bias(arm, structure) for structure in ("Anterior", "Posterior")]
        for arm in ("lean_s4", "pointrend_s4", "dense")
    )
    surest, least = CONVERGED.wrong("lean_s4", 4, math.inf), CONVERGED.wrong("lean_s4", 0, 0.25)
    tried = {arm: control(arm) for arm in ("dense_rate_low", "dense_rate_high", "dense_plain", "dense_top_k")}
    assert max(tried, key=lambda arm: tried[arm]) == "dense_rate_high"
    return [
        f"The best, with twice the learning rate, is {change(tried['dense_rate_high'])} above it.",
        f"at random the head loses {dice(-control('pointrend_s4_random', 'pointrend_s4'))}.",
        f"on fold 2 with seed 1 `lean_s4` has {dice(-pairs[2, 1])} less than `dense`, in the five others between "
        f"{dice(-others.min())} less and {dice(others.max())} more. The spread between seeds is "
        f"{dice(CONVERGED.spread(LEAN_DENSE).sd)}, not the {dice(SEEDS.spread(S2_DENSE).sd)} by which",
        f"still rise by {min(rising.values()):.4f} to {max(rising.values()):.4f} over the last quarter",
        f"is {lean[0]:+.1%} (anterior) and {lean[1]:+.1%} (posterior) for `lean_s4`, {head[0]:+.1%} and {head[1]:+.1%} "
        f"for `pointrend_s4`, {dense[0]:+.1%} and {dense[1]:+.1%} for `dense`",
        f"the {surest[0]:.0%} that were surest are wrong in {surest[1]:.1%} before and {surest[2]:.1%} after; the "
        f"{least[0]:.1%} that were least sure in {least[1]:.0%} before and {least[2]:.0%} after",
        f"After 2000 steps `{LEAN_DENSE}` is {converged(LEAN_DENSE)}), inside of a margin",
        f"`pointrend_s4` has {mean(S4_COARSE)} Dice over `coarse_s4`, and `pointrend_s2` {mean(S2_COARSE)} over",
        f"is written without the leading zero: {dice(MAIN.mean('dense', 'dice'))}.",
        f"so it is no evidence: {mean(S4_DENSE)} (over cases {cases(S4_DENSE)}, over trainings {trainings(S4_DENSE)})",
        f"On fold 0 `dense` reaches {dice(long_dense)} with 1000 steps, {dice(long_dense - short_s2)} more than "
        f"`pointrend_s2` with 500. That is more than the difference of {mean(S2_DENSE)}.",
        f"Another seed moves the difference by about {' or '.join(spreads)} (below)",
        f"{', '.join(by_seed)}.",
        f"with the largest volume {change(largest)}, the third with the smallest {change(smallest)}.",
    ]


def protocol() -> list[str]:
    spread = SEEDS.spread(S2_DENSE)
    return [
        f"Its {mean(S2_DENSE)} for `pointrend_s2` over `dense` has an interval over trainings that includes 0",
        f"standard deviation between seeds: {dice(spread.sd)} for the difference of two arms (`results/study_seeds`, "
        f"fold 1, three seeds; 95 % interval {dice(spread.low)} to {dice(spread.high)})",
    ]


def speed() -> list[str]:
    return [
        f"before and {dice(ABLATIONS.mean('point_alone', 'dice'))} after (`point_alone` of `configs/ablations.yaml`)",
        f"`coarse_s2` {dice(ABLATIONS.mean('coarse_s2', 'dice'))} before",
    ]


def log() -> list[str]:
    thick, noisy = (PHANTOMS.by_property(S2_COARSE, *of) for of in (("thickness_vox", 6), ("noise", 0.6)))
    noisy_s4 = PHANTOMS.by_property(S4_DENSE, "noise", 0.6)
    long = {arm: dice(LONG.mean(arm, "dice")) for arm in ("dense", "pointrend_s2", "pointrend_s4", "pointrend_s1")}
    timed = [dice(EQUAL_TIME.mean(f"{arm}_equal_time", "dice")) for arm in TIMED]
    rate_low, random = control("dense_rate_low"), control("pointrend_s4_random", "pointrend_s4")
    chance = [change(control(f"dense_{name}")) for name in ("rate_high", "plain", "top_k")]
    return [
        f"is worse by {dice(-rate_low)}. Twice the rate ({chance[0]}), no augmentation ({chance[1]}) and top-k "
        f"cross-entropy ({chance[2]}) change nothing",
        f"Points drawn at random cost `pointrend_s4` {dice(-random)}.",
        f"`{S2_DENSE}` over the three trainings is {trainings(S2_DENSE)}.",
        f"They are {change(thick, 3)}, {change(noisy, 3)} and {change(noisy_s4, 3)}, not",
        f"`dense` has {long['dense']} (before .8803†), `pointrend_s2` {long['pointrend_s2']} (.8748†), "
        f"`pointrend_s4` {long['pointrend_s4']} (.8725†), `pointrend_s1` {long['pointrend_s1']} (.8793†)",
        f"`{S2_COARSE}` {mean(S2_COARSE)}, `{S4_COARSE}` {mean(S4_COARSE)}, `{S2_DENSE}` {mean(S2_DENSE)} "
        f"({cases(S2_DENSE)}), `{S1_DENSE}` {mean(S1_DENSE)} ({cases(S1_DENSE)})",
        "With 110 s each (fold 0) `dense` has {}, `coarse_s2` {}, `pointrend_s2` {}, `pointrend_s4` {}.".format(*timed),
    ]


TIMED = ("dense", "coarse_s2", "pointrend_s2", "pointrend_s4")
SENTENCES: dict[str, Callable[[], list[str]]] = {
    "README.md": readme,
    "docs/glossary.md": glossary,
    "docs/protocol.md": protocol,
    "docs/results.md": results,
    "docs/speed.md": speed,
    "results/LOG.md": log,
}

FIGURE = re.compile(r"(?<![\w.])[+-]?\.\d{2,4}\b")
DAGGER = "†"
CHECKED = [
    pytest.param(table, id=f"{page.name}: {table.comment}: {table.header[0]}")
    for page in [*PAGES, LOG]
    for table in tables(page.read_text())
    if table.comment.startswith("figures:")
]


@pytest.mark.parametrize("table", CHECKED)
def test_a_table_holds_the_figures_of_results(table: MarkdownTable) -> None:
    for row in table.rows:
        assert list(row) == expected_row(table, row)


@pytest.mark.parametrize("page", SENTENCES)
def test_sentences_hold_the_figures_of_results(page: str) -> None:
    text = one_line((ROOT / page).read_text())
    for sentence in SENTENCES[page]():
        assert re.sub(r"(?<=\d)%", " %", sentence) in text


# errors.md shows what people typed; the tables of instances.md are recomputed by tests/scripts/test_instances.py
FIGURED = [page for page in [*PAGES, LOG] if page.name not in ("errors.md", "instances.md")]


@pytest.mark.parametrize("page", FIGURED, ids=lambda page: page.name)
def test_every_figure_is_recomputed_or_marked(page: Path) -> None:
    text = prose(page.read_text())
    for table in tables(text):
        if table.comment.startswith("figures:"):
            text = text.replace(table.text, "")
        for line in table.text.splitlines():
            if DAGGER in cells(line)[0]:
                text = text.replace(line, "")
    text = one_line(text)
    for sentence in SENTENCES.get(str(page.relative_to(ROOT)), list)():
        text = text.replace(sentence, "")
    loose = [found[0] for found in FIGURE.finditer(text) if text[found.end() : found.end() + 1] != DAGGER]
    assert loose == []


def test_the_page_of_results_explains_the_dagger() -> None:
    assert f"**{DAGGER}** marks a figure whose raw data are not kept" in (ROOT / "docs/results.md").read_text()
