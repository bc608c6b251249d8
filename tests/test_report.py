"""The report says what the rows say: no figure about persons without a verdict, no claim beyond an interval."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from monai_anon.evaluation.reporting import plots
from monai_anon.evaluation.reporting import sections as report_sections
from monai_anon.evaluation.reporting import tables as report_tables
from monai_anon.evaluation.reporting.page import Page
from monai_anon.evaluation.reporting.report import ReportError, write_report
from monai_anon.evaluation.reporting.runs import NOT_RECORDED, Curve, Run
from monai_anon.evaluation.tables import JUDGES, Row, write_rows

DATA = "phantoms/test"
COMMAND = "monai-anon evaluate --bundle bundles/chest --output runs/one"
NASTY = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>&$x_1$"
PERSONS = {
    "static_auc": 0.6171, "static_rank_1": 0.6172, "adaptive_auc": 0.6173, "adaptive_mixed_auc": 0.6174,
    "linkage_rank_1": 0.6175, "linkage_10_rank_1": 0.6176, "linkage_20_rank_1": 0.6177, "inversion_auc": 0.6178,
    "membership_nearest_auc": 0.6179, "repeated_1_auc": 0.6181, "repeated_4_auc": 0.6182, "attribute_sex_auc": 0.6183,
    "probe_residual_patient_auc": 0.6184, "factors_identity_r2": 0.6185, "judge_original_auc": 0.6186,
    "own_original_accuracy": 0.6187, "privacy_auc": 0.6188, "never_heard_of": 0.6189, "factor_lung_width_r2": 0.6191,
}  # fmt: skip


def row(metric, value, low=None, high=None, method="ours", **more):
    return Row(method, more.pop("dataset", DATA), metric, value, low, high, **{"n": 100, "weights": "w"} | more)


def judge(auc, dataset=DATA):
    return [
        row("verification_auc", auc, auc - 0.01, auc + 0.01, JUDGES, dataset=dataset),
        row("rank_1_chance", 0.01, 0.01, 0.01, JUDGES, dataset=dataset),
        row("finding_auc", 0.99, 0.98, 1.0, JUDGES, dataset=dataset),
    ]


def measured(method="ours", **more):
    return [row(metric, value, value - 0.05, value + 0.05, method, **more) for metric, value in PERSONS.items()] + [
        row("linkage_10_chance", 0.1, 0.1, 0.1, method, **more),
        row("linkage_20_chance", 0.05, 0.05, 0.05, method, **more),
        row("judge_finding_auc", 0.9321, 0.92, 0.94, method, **more),
        row("ssim_original", 0.7321, 0.72, 0.74, method, **more),
    ]


def make_run(folder, rows, generated=True, **about):
    write_rows(rows, folder / "rows.jsonl")
    record = {"command": COMMAND, "cohort": {"name": "phantoms", "generated": generated}, "subject": {"name": "ours"}}
    record["seconds"] = {"ours: static": 12.5}
    (folder / "run.json").write_text(json.dumps(record | about))
    curve = {"attack": "static", "method": "ours", "x": [0, 0.5, 1], "y": [0, 0.61795, 1]}
    (folder / "curves.json").write_text(json.dumps([curve]))
    (folder / "pictures").mkdir()
    Image.new("L", (8, 8), 90).save(folder / "pictures" / "one.png")
    entry = {"file": "one.png", "title": "Four phantoms", "columns": ["original", "anonymised"], "caption": "As made."}
    (folder / "pictures" / "pictures.json").write_text(json.dumps([entry]))
    return folder


def page_of(tmp_path, rows, **options):
    run = make_run(tmp_path / "run", rows, options.pop("generated", True))
    written = write_report([run], tmp_path / "page.html", **options)
    return written, written.path.read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Tags with their attributes, in order."""

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The page of two methods and a reference, one of them named to do harm."""
    folder = tmp_path_factory.mktemp("whole")
    rows = judge(0.97) + measured() + measured("none") + measured(NASTY) + [row("ssim_original", 0.8, method=NASTY)]
    return page_of(folder, rows)


# ---- tables and figures ----


@pytest.mark.parametrize(
    ("metric", "section"),
    [
        ("static_tar_at_far_1", "P1"), ("adaptive_released-released_rank_1", "P2"), ("adaptive_auc", "P2"),
        ("adaptive_lowest-bits_auc", "P2"), ("repeated_16_rank_1", "P6"),
        ("linkage_map_at_r", "P3"), ("linkage_50_chance", "P3"), ("inversion_ssim", "P4"),
        ("membership_black_box_tpr_at_fpr_1", "P5"), ("repeated_16_auc", "P6"), ("repeated_patient_4_auc", "P6"),
        ("attribute_sex_auc", "P7"), ("probe_medical_finding_auc", "P8"), ("judge_severity_correlation", "content"),
        ("trained_on_released_finding_auc", "content"), ("coverage", "realism"), ("retrieval_ndcg_at_10", "realism"),
        ("outside_evidence_share", "realism"), ("factor_lung_width_r2", "factors"),
        ("factors_residual_r2", "factors"), ("swap_lung_width", "factors"), ("blocks_mig", "factors"),
        ("block_identity_medical_r2", "factors"), ("channel_bits", "channel"), ("code_16_side_accuracy", "channel"),
    ],
)  # fmt: skip
def test_every_metric_stands_in_its_own_section(metric, section):
    found = {
        each.key: table
        for each in (*report_sections.ATTACKS, *report_sections.CONTENT)
        for group in each.groups
        if (table := report_tables.group_table([row(metric, 0.4321)], group))
    }
    assert list(found) == [section]
    assert any(cell.text == "0.432" for line in found[section].lines for cell in line.cells)


def test_the_reference_comes_first_in_a_table():
    rows = [row("static_auc", 0.5), row("static_auc", 0.9, method="none")]
    table = report_tables.group_table(rows, report_sections.ATTACKS[0].groups[0])
    assert [line.cells[0].text for line in table.lines] == ["none", "ours"] and table.lines[0].kind == "reference"


def test_no_two_methods_look_alike():
    look = plots.looks(["none", *(f"method {i}" for i in range(30))])
    assert len({(one.colour, one.marker) for one in look.values()}) == 31


def test_two_drawings_in_a_page_share_no_id(whole):
    ids = [attrs["id"] for _, attrs in Elements(whole[1]).tags if "id" in attrs]
    assert len(ids) == len(set(ids)) > 100


def test_a_metric_that_nobody_knows_is_in_the_table_of_all_figures(whole):
    assert "never_heard_of" in whole[1] and "0.6189" in whole[1]


def test_the_papers_figures_are_marked_as_other_data(whole):
    line = next(part for part in whole[1].split("<tr") if "Montenegro et al. 2023" in part)
    assert 'class="other"' in line and "other data" in line


STATIC_ONLY = [row(name, 0.6, 0.55, 0.65, "plain") for name in ("judge_original_auc", "judge_finding_auc")]


def test_a_method_that_met_the_static_attack_alone_has_a_table_of_its_own_and_only_the_static_plot():
    page = Page([Run(None, [*judge(0.97), *measured(), *STATIC_ONLY], {}, [])])
    retrained, static = page.content(False)["headline"]
    assert [[line.cells[0].text for line in table.lines] for table in (retrained, static)] == [["ours"], ["plain"]]
    assert "at least" in static.caption and "at least |AUC - 0.5|" in static.columns
    first, second = page.drawings.overview()
    assert "plain" not in first.svg and "plain" in second.svg and "ours" in second.svg
    assert "ours: leakage 0.117" in second.alt, "of its static attack, not of its strongest"
    assert "static attack alone" in second.svg and "strongest attack" in first.svg


def test_without_retrained_attackers_there_is_only_the_static_table_and_plot():
    page = Page([Run(None, [*judge(0.97), *STATIC_ONLY], {}, [])])
    assert len(page.content(False)["headline"]) == len(page.drawings.overview()) == 1


def test_every_figure_tells_where_it_comes_from():
    source = {"seed": 7, "weights": "abc123", "revision": "f00d", "images_seen": 1234}
    found = report_tables.all_figures([row("fid", 2.0, **source)])
    cells = dict(zip(found.columns, (cell.text for cell in found.lines[0].cells), strict=True))
    assert [cells[name] for name in ("seed", "weights", "revision", "images seen")] == ["7", "abc123", "f00d", "1,234"]


def test_what_was_not_measured_is_not_called_a_verdict(tmp_path):
    rows = judge(0.97) + measured()
    rows += [row("own_original_accuracy", None, method="reconstruction"), row("side_accuracy", None, method=JUDGES)]
    _, page = page_of(tmp_path, rows)
    assert "not measured" in page and "no verdict" not in page


def test_scores_over_blocks_are_not_called_by_the_names_of_those_over_dimensions():
    names = ("disentanglement", "completeness", "informativeness", "mig", "sap")
    rows = [row(f"blocks_{name}", 0.5) for name in names]
    groups = [group for section in report_sections.CONTENT for group in section.groups]
    table = next(found for group in groups if (found := report_tables.group_table(rows, group)))
    assert len(set(table.columns)) == 6 and not any(column.startswith(("DCI", "blocks")) for column in table.columns)
    assert not set(table.columns) & set(names[3:]), "every column has a title"
    assert any("blocks" in note and "not to be compared" in note for note in table.notes)


# ---- the page ----


def test_a_name_from_a_user_runs_nothing(whole):
    page = whole[1]
    assert NASTY not in page and "<img src=x" not in page
    tags = Elements(page).tags
    assert [tag for tag, _ in tags].count("script") == 1
    assert not [attrs for _, attrs in tags if any(name.startswith("on") for name in attrs)]
    policy = next(attrs["content"] for _, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "script-src 'sha256-" in policy and "default-src 'none'" in policy


def test_the_page_loads_nothing_from_anywhere(whole):
    for tag, attrs in Elements(whole[1]).tags:
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert attrs.get(name, "#").startswith(("#", "data:")), (tag, attrs)
    assert "@import" not in whole[1] and not re.search(r"url\((?!#)", whole[1])


def test_headings_go_down_one_step_at_a_time_and_tables_are_labelled(whole):
    tags = Elements(whole[1]).tags
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    names = [tag for tag, _ in tags]
    assert names.count("table") == names.count("caption") > 10
    assert all("scope" in attrs for tag, attrs in tags if tag == "th")
    assert all(attrs.get("aria-label") for _, attrs in tags if attrs.get("role") == "img")
    assert next(attrs for tag, attrs in tags if tag == "html")["lang"] == "en"


def test_the_judges_come_before_every_figure_of_privacy(whole):
    page = whole[1]
    order = ["made", "judges", "headline", "attacks", "kept", "paper", "pictures", "conclusions", "again", "everything"]
    places = [page.index(f'<h2 id="{name}"') for name in order]
    assert places == sorted(places)


def test_text_stands_out_from_its_ground_in_light_and_dark(whole):
    themes = re.findall(r"--paper.*?\}", whole[1], flags=re.S)[:2]
    for theme in themes:
        colour = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", theme))
        pairs = [("ink", "paper"), ("muted", "paper"), ("muted", "shade"), ("ink", "shade"), ("accent", "paper")]
        for ink, ground in [*pairs, ("warn-ink", "warn-paper"), ("good-ink", "good-paper")]:
            assert contrast(colour[ink], colour[ground]) >= 4.5, (ink, ground)


def contrast(one, other):
    """Contrast ratio of two colours (WCAG 2.2)."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_how_long_it_took_is_folded(whole):
    folded = whole[1][whole[1].index("<details>") : whole[1].index("</details>")]
    assert "ours: static" in folded and "12.5" in folded


def test_every_section_names_its_command(whole):
    commands = whole[1][whole[1].index('<h2 id="again"') : whole[1].index('<h2 id="everything"')]
    assert commands.count(COMMAND) >= 10 and "monai-anon report RUN" in commands


def test_runs_stand_side_by_side_and_seeds_are_counted(tmp_path):
    runs = [
        make_run(tmp_path / name, judge(0.97) + measured(weights=name, images_seen=90), subject={"name": "ours"})
        for name in ("one", "two")
    ]
    page = write_report(runs, tmp_path / "page.html").path.read_text()
    assert "run 1" in page and "run 2" in page and "mean of 2 training seeds" in page and "up to 2 here" in page


def test_curves_of_several_runs_name_a_method_once():
    curves = [Curve("static", "ours", "x", "y", [0, 1], [0, y]) for y in (0.5, 1.0)]
    assert plots.attack_curves("static", curves, plots.looks(["ours"])).count(">ours<") == 1


def test_a_run_of_an_older_version_says_what_it_did_not_record(tmp_path):
    write_rows(judge(0.97) + measured(), tmp_path / "rows.jsonl")
    page = write_report([tmp_path], tmp_path / "page.html").path.read_text()
    assert page.count(NOT_RECORDED) > 10


# ---- pictures ----


@pytest.mark.parametrize(
    ("generated", "pictures", "shown", "warned"),
    [(True, None, True, False), (False, None, False, False), (None, None, False, False), (False, True, True, True),
     (True, False, False, False), ("yes", None, False, False)],
)  # fmt: skip
def test_pictures_of_patients_are_shown_only_where_asked_and_then_with_a_warning(
    tmp_path, generated, pictures, shown, warned
):
    _, page = page_of(tmp_path, judge(0.97), generated=generated, pictures=pictures)
    assert ('<img src="data:image/png;base64,' in page) is shown
    assert ("do not share" in page) is warned
    assert shown or "Pictures are left out" in page


def test_one_real_cohort_among_the_runs_hides_all_pictures(tmp_path):
    runs = [make_run(tmp_path / str(real), judge(0.97), generated=not real) for real in (False, True)]
    assert "<img" not in write_report(runs, tmp_path / "page.html").path.read_text()


def test_a_picture_outside_its_folder_is_refused(tmp_path):
    run = make_run(tmp_path / "run", judge(0.97))
    (run / "pictures" / "pictures.json").write_text(json.dumps([{"file": "../../secret.png", "title": "t"}]))
    with pytest.raises(ReportError, match="own folder"):
        write_report([run], tmp_path / "page.html")


def test_a_missing_picture_is_said(tmp_path):
    run = make_run(tmp_path / "run", judge(0.97))
    (run / "pictures" / "one.png").unlink()
    assert "“Four phantoms” is missing" in write_report([run], tmp_path / "page.html").path.read_text()


# ---- files ----


@pytest.mark.parametrize(
    "make", [lambda folder: None, Path.mkdir, lambda folder: write_rows([], folder / "rows.jsonl")]
)
def test_a_folder_without_rows_is_named_with_the_command_that_makes_them(tmp_path, make):
    make(tmp_path / "run")
    with pytest.raises(ReportError, match=rf"(?s){tmp_path / 'run'}.*monai-anon evaluate --output {tmp_path / 'run'}"):
        write_report([tmp_path / "run"], tmp_path / "page.html")


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("rows.jsonl", "{}\n", "line 1"),
        ("run.json", "{", "run.json is no JSON"),
        ("run.json", "[]", "must be an object"),
        ("curves.json", '[{"attack": "a", "method": "m", "x": [0], "y": [0, 1]}]', "1 x and 2 y"),
        ("curves.json", '[{"attack": "a"}]', "has no"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, text, match):
    run = make_run(tmp_path / "run", judge(0.97))
    (run / name).write_text(text)
    with pytest.raises(ReportError, match=match):
        write_report([run], tmp_path / "page.html")


def test_no_run_is_refused(tmp_path):
    with pytest.raises(ReportError, match="no RUN"):
        write_report([], tmp_path / "page.html")


def test_the_page_is_moved_into_place_as_a_whole(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", judge(0.97))
    old = "<title>Evaluation of another</title>"
    (tmp_path / "page.html").write_text(old)

    def refused(self, target):
        assert "</html>" in self.read_text()
        raise OSError("no permission")

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(OSError, match="no permission"):
        write_report([run], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "run"]


def test_only_an_earlier_report_is_replaced(tmp_path):
    run = make_run(tmp_path / "run", judge(0.97))
    page, mine, rows = tmp_path / "page.html", tmp_path / "mine.html", run / "rows.jsonl"
    mine.write_text("<title>Thesis</title>")
    for _ in range(2):
        write_report([run], page)
    for output, match in ((mine, "no report"), (rows, "no report"), (tmp_path, "is a folder")):
        with pytest.raises(ReportError, match=match):
            write_report([run], output)
    assert mine.read_text() == "<title>Thesis</title>" and rows.read_text()


def test_the_same_runs_make_the_same_page(tmp_path):
    run = make_run(tmp_path / "run", judge(0.97) + measured())
    assert (
        write_report([run], tmp_path / "a.html").path.read_bytes()
        == write_report([run], tmp_path / "b.html").path.read_bytes()
    )
