"""Split files that cannot be used: the codes and where they point."""

import pytest
from vcbench.data_specs.errors import InvalidFile
from vcbench.data_specs.split_file import read_split

HEADER = "context,perturbation,split,subgroup\n"


@pytest.mark.parametrize(
    ("text", "code", "where", "found"),
    [
        (b"\xff\xfe\x00", "E601", "split.csv", "codec"),
        (b"context,perturbation\nK562,A\n", "E602", "split.csv:1", "context, perturbation"),
        ((HEADER + "K562,A,train,\nK562,B,holdout,\n").encode(), "E603", "split.csv:3", "'holdout'"),
        ((HEADER + "K562,A,train,\nK562,A,test,\n").encode(), "E604", "split.csv:3", "('K562', 'A') again"),
    ],
)
def test_unusable_split_files(tmp_path, text, code, where, found):
    (tmp_path / "split.csv").write_bytes(text)
    with pytest.raises(InvalidFile) as caught:
        read_split(tmp_path / "split.csv")
    (issue,) = caught.value.issues
    assert issue.code == code and found in issue.found
    assert issue.where.endswith(where) and issue.fix.startswith("vcbench data split ")


def test_missing_split_file(tmp_path):
    with pytest.raises(InvalidFile) as caught:
        read_split(tmp_path / "none.csv")
    assert [issue.code for issue in caught.value.issues] == ["E601"]
