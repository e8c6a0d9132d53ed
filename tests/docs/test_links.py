"""Links inside the repository lead somewhere: files, headings, pages that are generated. Nothing is fetched."""

import posixpath
import re
import sys

import pytest
from doc_pages import ROOT, pages

sys.path.insert(0, str(ROOT / "docs" / "_ext"))
GENERATED = "docs/generated"
FILES = [
    *pages(),
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "baselines").rglob("README.md")),
    *sorted((ROOT / "benchmarks" / "results").glob("*.md")),
]


def name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def texts():
    """Path from the root to text of every page, generated ones included."""
    from benchmark_plots import PLOTS, plots_page
    from reference_pages import reference_pages

    made = {**reference_pages(), "benchmarks/plots.md": plots_page()}
    made |= {f"benchmarks/plots/{plot.name}.svg": "" for plot in PLOTS}
    found = {name(path): path.read_text(encoding="utf-8") for path in FILES}
    return found | {f"{GENERATED}/{path}": text for path, text in made.items()}


def without_code(text):
    text = re.sub(r"^(`{3,}|~{3,}).*?^\1\s*$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def links(text):
    """Targets of links and images outside code, without those to other sites."""
    found = re.findall(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)", without_code(text))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(text):
    """Names that headings get: lower case, blanks to hyphens, repeated ones numbered."""
    out, seen = set(), {}
    plain = re.sub(r"^(`{3,}).*?^\1\s*$", "", text, flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*$", plain, flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")
        n = seen.get(slug, 0)
        seen[slug] = n + 1
        out.add(f"{slug}-{n}" if n else slug)
    return out


def broken(page, texts):
    """Links of a page that lead nowhere."""
    out = []
    for link in links(texts[page]):
        path, _, anchor = link.partition("#")
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
        text = texts.get(target)
        absent = text is None and not (ROOT / target).exists()
        if absent or (anchor and text is not None and anchor not in anchors(text)):
            out.append(link)
    return out


@pytest.mark.parametrize("page", [name(path) for path in FILES])
def test_links_lead_somewhere(page, texts):
    assert broken(page, texts) == []


def test_links_of_generated_pages_lead_somewhere(texts):
    from reference_pages import copied_pages

    copies = {f"{GENERATED}/{page}" for page in copied_pages().values()}
    own = [page for page in texts if page.startswith(GENERATED) and page not in copies]
    assert {page: found for page in own if (found := broken(page, texts))} == {}


def test_tables_of_contents_name_pages(texts):
    from fnmatch import fnmatch

    listed = set()
    docs = [page for page in texts if page.startswith("docs/") and page.endswith(".md")]
    for page in docs:
        for body in re.findall(r"^```\{toctree\}\n(.*?)^```", texts[page], flags=re.MULTILINE | re.DOTALL):
            for entry in filter(None, (line.strip() for line in body.splitlines())):
                if entry.startswith(":"):
                    continue
                wanted = posixpath.join(posixpath.dirname(page), entry) + ".md"
                # A star stands within one folder.
                found = {p for p in docs if fnmatch(p, wanted) and p.count("/") == wanted.count("/")}
                assert found, f"{page}: no page for {entry!r}"
                listed |= found
    # The star of the index lists the index itself, which Sphinx leaves out.
    assert set(docs) == listed


def test_a_broken_link_is_seen():
    page = "[x](b.md) [y](c.md) [z](b.md#there) [w](b.md#not) `[v](d.md)` [u](https://x.y)"
    texts = {"a.md": page, "b.md": "# There"}
    assert broken("a.md", texts) == ["c.md", "b.md#not"]


def test_links_out_of_the_docs_lead_to_copies():
    from vcbench_pages import redirected

    text = "[a](../../baselines/gears/README.md#x) [b](../probes.md) [c](../../benchmarks/results/probes.md)"
    assert redirected(text, "tasks/x.md") == (
        "[a](../generated/models/gears.md#x) [b](../probes.md) [c](../generated/benchmarks/probes.md)"
    )


def test_every_plot_finds_its_rows(tmp_path):
    from benchmark_plots import PLOTS, Plot, bars, draw

    assert all(len(bars(plot)) > 1 for plot in PLOTS)
    with pytest.raises(ValueError, match="no rows"):
        bars(Plot("x", "x", "scoring_speed.md", "no such column"))
    first = [path.read_bytes() for path in draw(tmp_path)]
    assert first == [path.read_bytes() for path in draw(tmp_path)]
