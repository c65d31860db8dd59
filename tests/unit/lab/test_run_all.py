"""The file of molecule's results: what ran when, and what never did."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "molecule"))

import run_all

OLD = "| ha3 | passed | 448 s | 2026-11-25 15:00 | abc | ansible-core 1 | Three MDS |"


def test_a_row_of_an_earlier_run_stays_and_what_never_ran_says_so() -> None:
    first = run_all.page({"ha3": OLD}, ["single", "ha3"])
    assert run_all.rows_of(first) == {"single": "| single | not run | | | | | |", "ha3": OLD}
    new = "| single | failed (2) | 9 s | 2026-11-25 16:00 | def | ansible-core 1 | One host |"
    second = run_all.page({**run_all.rows_of(first), "single": new}, ["single", "ha3"])
    assert run_all.rows_of(second) == {"single": new, "ha3": OLD}
    assert second.startswith(run_all.HEADER)


def test_notes_stay() -> None:
    notes = "\n## By parts\n\n| what | how |\n"
    text = run_all.page({"ha3": OLD}, ["ha3"], notes)
    assert run_all.notes_of(text) == notes
    assert run_all.notes_of(run_all.page({"ha3": OLD}, ["ha3"])) == ""


def test_a_scenario_that_is_gone_has_no_row() -> None:
    assert "ha3" not in run_all.page({"ha3": OLD}, ["single"])


def test_scenarios_of_the_tree() -> None:
    names = run_all.scenarios()
    assert names[0] == "default"
    assert {"single", "ha5", "airgap"} <= set(names)
    assert all(run_all.first_line((run_all.TREE / "molecule" / name / "molecule.yml").read_text()) for name in names)
