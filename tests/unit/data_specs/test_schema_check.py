"""The checker of standard files on whole files: valid ones, several defects at once, block sizes, containers."""

from pathlib import Path

from builders import standard_h5ad
from schema_edits import drop, edited, fractions, good, put, set_value, spec, unlabel
from vcbench.data_specs.conversion import convert
from vcbench.data_specs.schema_check import check_standard


def test_valid_files_have_no_issue(tmp_path):
    assert check_standard(standard_h5ad(tmp_path / "counts.h5ad", contexts=("A", "B"))) == []
    assert check_standard(standard_h5ad(tmp_path / "log1p.h5ad", kind="log1p")) == []


def test_all_problems_at_once_and_the_file_is_untouched(tmp_path):
    path = edited(good(tmp_path), set_value(5, -2))
    edited(path, set_value(7, 0.5))
    edited(path, drop("obs/n_targets"))
    edited(path, unlabel("context", 0))
    before = path.read_bytes()
    assert [issue.code for issue in check_standard(path, block_bytes=1)] == ["E615", "E616", "E620", "E626"]
    assert path.read_bytes() == before


def test_results_do_not_depend_on_the_block_size(tmp_path):
    path = edited(fractions(tmp_path), set_value(200, -1))
    assert check_standard(path, block_bytes=1) == check_standard(path, block_bytes=2**26)


def test_container_problems_are_issues_too(tmp_path):
    (tmp_path / "text.h5ad").write_text("gene,count\n")
    assert [issue.code for issue in check_standard(tmp_path / "text.h5ad")] == ["E003"]
    assert [issue.code for issue in check_standard(tmp_path / "none.h5ad")] == ["E001"]


def test_log1p_of_a_gene_subset_may_sum_to_less(tmp_path):
    path = standard_h5ad(tmp_path / "a.h5ad", kind="log1p")
    edited(path, put("uns/vcbench/matrix/target_sum", 100.0))
    edited(path, set_value(0, 0.1))
    assert check_standard(path) == []


def test_recall_level_counts_only_warn(tmp_path):
    path = good(tmp_path)
    done = convert(path, spec(n_cells={"value": 70, "verified": "recall"}), out=Path(tmp_path / "out.h5ad"))
    assert [(issue.code, issue.severity) for issue in done.issues] == [("E635", "warning")]
