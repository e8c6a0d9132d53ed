"""What a release needs beside the code: lowest bounds that follow pyproject.toml, a citation, a complete sdist."""

import re
import tomllib

from release.bounds import LOWEST, ROOT, lowest
from release.check_install import IN_SDIST, VERSIONS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_lowest_bounds_are_those_of_pyproject():
    assert LOWEST.read_text(encoding="utf-8").splitlines() == lowest(), (
        "run tests/release/bounds.py > lowest.txt"
    )


def test_every_supported_python_is_checked():
    listed = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert tuple(listed) == VERSIONS
    assert PROJECT["requires-python"] == ">=3.11,<3.14"


def test_citation_names_version_licence_and_authors():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    fields = dict(re.findall(r"^([a-z-]+): (.+)$", text, flags=re.MULTILINE))
    assert fields["cff-version"] == "1.2.0" and fields["type"] == "software" and fields["title"]
    assert fields["version"] == PROJECT["version"] and fields["license"] == PROJECT["license"]
    (author,) = re.findall(r"^  - name: (.+)$", text, flags=re.MULTILINE)
    assert author == PROJECT["authors"][0]["name"] == "The vcbench developers"


def test_files_of_the_sdist_exist():
    assert [name for name in IN_SDIST if not (ROOT / name).is_file()] == []
