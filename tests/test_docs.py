"""The docs say what is true: every name is one of the code, every link leads somewhere, every block works."""

import argparse
import ast
import json
import re
import sys
from pathlib import Path

from colocate.cli import OPTIONS
from colocate.cli.main import _parser as colocate_parser
from colocate.plan.catalog import load_catalog
from colocate.plan.catalog_schema import CatalogFile, Hyperparameter, Repository
from colocate.plan.plan import load_plan
from colocate.plan.schema import Entry, Limits, PlanFile, TrainingSpec
from colocate.plugin.outcomes import CRASHED, ERROR, INTERRUPTED, NOT_RUN
from colocate.report.summary_csv import COLUMNS
from colocate.results import journal
from colocate.results.layout import GroupDirectory, RunDirectory
from colocate.results.progress_file import NAME as PROGRESS
from colocate.verdict import ReasonCode

ROOT = Path(__file__).parents[1]
DOCS = [*sorted((ROOT / "docs").rglob("*.md")), *(path for path in [ROOT / "README.md"] if path.exists())]
REFERENCE = (ROOT / "docs/reference.md").read_text()
DESIGN = (ROOT / "docs/design.md").read_text()
SETTINGS = (ROOT / "settings/README.md").read_text()


def section(title):
    return REFERENCE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def first_cells(text):
    """The code words in the first cell of every row of the tables in a text."""
    rows = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("| ---")]
    return {word for row in rows for word in re.findall(r"`([^`]+)`", row.replace("\\|", "/").split("|")[1])}


# Reference.


def test_every_option_stands_in_the_reference_and_no_other():
    named = {name.partition("=")[0] for name in first_cells(section("Options of `colocate run`"))}
    assert named == {f"--{name}" for name in OPTIONS}


def test_every_subcommand_and_its_arguments_stand_in_the_reference():
    reported = section("The command `colocate`")
    (subcommands,) = [a for a in colocate_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    assert set(subcommands.choices) <= first_cells(reported)
    for name, parser in subcommands.choices.items():
        (row,) = [line for line in reported.splitlines() if line.startswith(f"| `{name}` |")]
        if "see `--help`" in row or name == "run":
            continue
        flags = {flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")}
        assert set(re.findall(r"`(--[\w-]+)`", row)) == flags - {"--help"}


def test_every_column_stands_in_the_reference_and_no_other():
    assert first_cells(section("Columns of `summary.csv`")) == set(COLUMNS)


def test_every_file_of_a_run_stands_in_the_reference():
    reported = first_cells(section("Files of a run"))
    run, group = RunDirectory(Path("run")), GroupDirectory(Path("run/group"))
    files = [run.record, run.summary, group.experiment, group.verdict, group.trace, group.foreground_log]
    folders = [group.energy, group.background_log(1).parent, group.events("foreground").parent, run.quarantine]
    folders.append(group.probe("foreground").parent)
    assert {path.name for path in [*files, group.virtual_gpu]} | {f"{path.name}/" for path in folders} <= reported
    assert {journal.NAME, PROGRESS} <= reported


def test_the_reference_has_every_reason_code_with_its_meaning():
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", section("Reason codes"), re.M)

    assert rows == [(code.value, code.meaning) for code in ReasonCode]


def test_every_reason_code_is_given_somewhere():
    sources = [path.read_text() for path in (ROOT / "colocate").rglob("*.py") if path.name != "reasons.py"]
    code_of_a_role = re.compile(r"^(?:foreground|background)(?=_)")
    given = set(re.findall(r"[\"}](\w+)\"|ReasonCode\.(\w+)", "\n".join(sources)))
    words = {word.lower() for pair in given for word in pair if word}

    assert [code for code in ReasonCode if code not in words and code_of_a_role.sub("", code) not in words] == []


def test_the_rules_of_the_design_name_reason_codes():
    rows = [line.split("|") for line in DESIGN.splitlines() if re.match(r"\| [1-7]\. ", line)]
    codes = {code for row in rows for place in (2, 3) for code in re.findall(r"`(\w+)`", row[place])}

    assert len(rows) == 7
    assert codes <= set(ReasonCode)


def test_endings_without_a_verdict_stand_in_the_reference():
    assert all(f"`{ending}`" in REFERENCE for ending in (NOT_RUN, INTERRUPTED, CRASHED, ERROR))


def test_every_key_of_the_settings_is_explained():
    for model in (PlanFile, Limits, Entry, TrainingSpec, CatalogFile, Repository, Hyperparameter):
        keys = {field.alias or name for name, field in model.model_fields.items()}
        assert not [key for key in keys if f"`{key}`" not in SETTINGS]


# Links and blocks.


def anchors(text):
    """The anchors that headings of Markdown have."""
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_relative_link_leads_somewhere():
    for path in DOCS:
        text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if target.startswith(("https://", "http://", "mailto:")):
                continue
            name, _, anchor = target.partition("#")
            there = (path.parent / name).resolve() if name else path
            assert there.exists(), (path.name, target)
            assert not anchor or anchor in anchors(there.read_text()), (path.name, target)


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def test_every_block_of_python_and_json_can_be_read():
    for path in DOCS:
        for block in blocks(path, "python"):
            ast.parse(block, path.name)
        for block in blocks(path, "json"):
            json.loads(block)


def test_the_plans_and_catalogs_of_the_how_tos_load(tmp_path):
    own = ROOT / "docs/how-to/own-models.md"
    plan, catalog = (json.loads(block) for block in blocks(own, "json"))
    (tmp_path / "settings").mkdir()
    (tmp_path / "bert").mkdir()
    for name in ("bert/finetune.py", "settings/train.py"):
        (tmp_path / name).touch()
    text = json.dumps(plan).replace("/home/me/venvs/bert/bin/python", sys.executable)
    (tmp_path / "settings/plan.json").write_text(text)
    assert load_plan(tmp_path / "settings/plan.json").groups[0].foreground.dry_run_args == ("--max-steps", "4")
    (tmp_path / "settings/models.json").write_text(json.dumps(catalog))
    assert load_catalog(tmp_path / "settings/models.json").repositories["my_models"].models == ["tiny", "base"]
