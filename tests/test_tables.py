"""Rows survive their file, and tables hold what the rows say and nothing else."""

import pytest

from monai_anon.evaluation import tables
from monai_anon.evaluation.tables import PAPER, PAPER_ROWS, Row

OURS = [
    Row("untouched images", "phantom/test", "verification_auc", 0.99, 0.98, 1.0, 300),
    Row("reconstruction", "phantom/test", "ssim_original", 0.81, 0.80, 0.82, 300),
    Row("identity replacement", "phantom/test", "judge_original_auc", 0.5, 0.45, 0.55, 300),
    Row("averaging 6 identities", "phantom/test", "own_overall_accuracy", 0.01, 0.0, 0.02, 300),
]


def test_rows_survive_their_file(tmp_path):
    path = tables.write_rows(OURS, tmp_path / "new" / "rows.jsonl")
    assert tables.read_rows(path) == OURS


def test_an_undefined_value_is_written_as_null_not_as_nan(tmp_path):
    path = tables.write_rows([Row("a", "b", "c", float("nan"), float("inf"), 1.0)], tmp_path / "rows.jsonl")
    assert "NaN" not in path.read_text() and "Infinity" not in path.read_text()
    assert tables.read_rows(path) == [Row("a", "b", "c", None, None, 1.0)]


def test_a_line_that_is_no_row_is_named(tmp_path):
    path = tables.write_rows(OURS, tmp_path / "rows.jsonl")
    path.write_text(path.read_text() + '{"methd": 1}\n')
    with pytest.raises(ValueError, match="line 5"):
        tables.read_rows(path)


def test_table_2_has_our_figures_with_intervals_and_the_papers_marked_as_other_data():
    table = tables.table_2(OURS).set_index(["data", "method"])
    assert table.loc[("phantom/test", "reconstruction"), "SSIM original"] == "0.810 (0.800-0.820)"
    assert table.loc[("phantom/test", "reconstruction"), "F1"] == "-"
    assert table.loc[("phantom/test", "identity replacement"), "judge: AUC original"] == "0.500 (0.450-0.550)"
    assert "other data" in PAPER
    assert list(table.loc[(PAPER, "reconstruction")][list(tables.OWN_2)]) == [
        "0.655", "0.963", "0.772", "0.140", "0.817", "0.827",
    ]  # fmt: skip
    assert len(table) == 2 + 3


def test_table_3_has_one_line_an_identity_source():
    table = tables.table_3(OURS).set_index(["data", "method"])
    assert table.loc[("phantom/test", "averaging 6 identities"), "overall accuracy"] == "0.010 (0.000-0.020)"
    assert list(table.loc[(PAPER, "VAE with privacy loss")][list(tables.OWN_3)]) == ["0.106", "0.114", "0.784"]
    assert len(table) == 1 + 2


def test_the_papers_rows_are_those_of_the_like_data():
    assert len(PAPER_ROWS) == 3 * 6 + 2 * 3 and all(0 < row.value <= 1 for row in PAPER_ROWS)
    assert {row.dataset for row in PAPER_ROWS} == {PAPER}
    assert {row.dataset for row in tables.paper_rows(["iris_64/test"])} == {"paper (Warsaw's irises, other data)"}
    assert tables.paper_rows(["warsaw/test"]) == tables.paper_rows(["iris_64/test"])
    assert len(tables.paper_rows(["face_64/test", "chest_64/test"])) == len(PAPER_ROWS) + 3 * 6 + 3


def test_irises_stand_beside_the_papers_irises():
    ours = [
        Row("VAE with privacy loss", "iris_64/test", "judge_identification_confidence", 0.5, n=360),
        Row("reconstruction", "iris_64/test", "ssim_original", 0.6, n=360),
    ]
    label = "paper (Warsaw's irises, other data)"
    second, third = (table.set_index(["data", "method"]) for table in (tables.table_2(ours), tables.table_3(ours)))
    assert second.loc[(label, "identity replacement"), "identity target"] == "0.827"
    assert third.loc[(label, "VAE with privacy loss"), "largest confidence"] == "0.118"
    assert third.loc[(label, "averaging all identities"), "accuracy"] == "0.912"
    assert PAPER not in {place[0] for place in [*second.index, *third.index]}


def test_the_report_begins_with_the_judges_and_says_when_there_is_no_verdict():
    silent = Row("identity replacement", "real/test", "judge_original_auc", None, note="no verdict: AUC 0.7")
    page = tables.report([*OURS, silent])
    assert page.index("judges") < page.index("Table 2") < page.index("Table 3")
    assert page.count("**no verdict: AUC 0.7**") == 1
    assert tables.table_2([silent]).iloc[0]["judge: AUC original"] == "no verdict"


def test_tables_are_written_as_jsonl_markdown_and_csv(tmp_path):
    written = tables.write_tables(OURS, tmp_path)
    assert sorted(path.name for path in written) == [
        "judges.csv",
        "report.md",
        "rows.jsonl",
        "table_2.csv",
        "table_3.csv",
    ]
    assert "identity replacement" in (tmp_path / "table_2.csv").read_text()


def test_stamp_says_where_rows_come_from():
    assert {(row.weights, row.revision) for row in tables.stamp(OURS, weights="w", revision="r")} == {("w", "r")}
