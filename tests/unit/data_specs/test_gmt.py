"""The GMT reader: by hand, gzip, term size, and the shared gene ontology file."""

import gzip
from pathlib import Path

import pytest
from vcbench.data_specs.errors import InvalidFile
from vcbench.data_specs.gmt import covered, read_gmt

GO = Path(__file__).parents[3] / "../shared/data/go_bp_human_2022-07.gmt.gz"
TEXT = "T1\tsomething\tA\tB\tC\nT2\t\tB\t\n\nT3\tx\tC\tC\tD\r\n"


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_terms_of_genes_by_hand(tmp_path, pack):
    path = tmp_path / "sets.gmt"
    path.write_bytes(pack(TEXT.encode()))
    assert read_gmt(path) == {"A": {"T1"}, "B": {"T1", "T2"}, "C": {"T1", "T3"}, "D": {"T3"}}
    assert read_gmt(path, max_term_size=2) == {"B": {"T2"}, "C": {"T3"}, "D": {"T3"}}


def test_covered_targets_keep_their_order():
    assert covered(["C", "X", "A", "E"], {"A": {"T1"}, "C": {"T2"}, "E": set()}) == ["C", "A"]


def test_all_bad_lines_at_once(tmp_path):
    path = tmp_path / "sets.gmt"
    path.write_text("T1\td\tA\n\td\tB\nT2\nT1\td\tC\n")
    with pytest.raises(InvalidFile) as caught:
        read_gmt(path)
    assert [issue.where for issue in caught.value.issues] == ["sets.gmt:2", "sets.gmt:3", "sets.gmt:4"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00", gzip.compress(TEXT.encode())[:20]])
def test_unreadable_files(tmp_path, content):
    path = tmp_path / "sets.gmt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidFile) as caught:
        read_gmt(path)
    assert [issue.code for issue in caught.value.issues] == ["E632"]


@pytest.mark.skipif(not GO.exists(), reason="the gene ontology file is not in ../shared/data")
def test_gene_ontology():
    annotation = read_gmt(GO)
    assert covered(["IER5L", "KLF1", "TMSB4X"], annotation) == ["KLF1", "TMSB4X"]
    assert len({term for terms in read_gmt(GO, max_term_size=None).values() for term in terms}) == 15_517
