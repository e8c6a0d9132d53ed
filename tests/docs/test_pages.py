"""Every command of README and docs runs, in the order of its page, and shows what the page shows."""

import importlib.util
import re
import sys

import pytest
from command_lines import parse
from doc_pages import (
    REASONS,
    ROOT,
    SHOWN,
    PageError,
    PageRun,
    commands_of,
    front_matter,
    missing_line,
    pages,
    read_blocks,
    vcbench_lines,
)

PAGES = pages()
MODEL_READMES = sorted((ROOT / "baselines").rglob("README.md"))


def name(page):
    return page.relative_to(ROOT).as_posix()


def page_params():
    for page in PAGES:
        marks = [pytest.mark.docs] if front_matter(page).get("run") == "slow" else []
        yield pytest.param(page, id=name(page), marks=marks)


@pytest.fixture
def clean_process(monkeypatch, tmp_path):
    """Work in an empty folder; modules, paths, metrics and models that a page brings leave with it."""
    from vcbench.baselines import registry
    from vcbench.evaluator.metrics import spec

    modules, paths = set(sys.modules), list(sys.path)
    tables = [spec.FAMILIES, registry.BASELINES, registry.DEEP]
    copies = [dict(table) for table in tables]
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = paths
    for table, copy in zip(tables, copies, strict=True):
        table.clear()
        table.update(copy)
    added = {name for name in set(sys.modules) - modules if str(tmp_path) in str(sys.modules[name])}
    for key in [key for key, metric in spec._REGISTRY.items() if metric.compute.__module__ in added]:
        del spec._REGISTRY[key]
    for module in added:
        del sys.modules[module]


@pytest.fixture
def one_thread():
    """Small networks gain nothing from a second thread, and lose much where the machine is busy."""
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("page", list(page_params()))
def test_commands_run(page, clean_process, request):
    needed = front_matter(page).get("needs")
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{name(page)} needs {needed}")
    if needed == "torch":
        request.getfixturevalue("one_thread")
    run = PageRun(clean_process)
    for block in read_blocks(page):
        run.run(block)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_runs_or_says_why_not(page):
    for block in read_blocks(page):
        runs = block.language in ("console", "sh", "python")
        if block.not_run:
            assert block.not_run.startswith(REASONS), f"{block.where}: no known reason: {block.not_run!r}"
            assert runs, f"{block.where}: only commands need a reason"
        elif not runs:
            directive = block.language in ("note", "tip", "warning", "important", "list-table", "figure")
            assert block.language in SHOWN or directive or "caption" in block.options, (
                f"{block.where}: give the block a language; console, sh and python blocks run"
            )
            commands = [line for line in block.text.splitlines() if re.match(r"(\$ |vcbench )", line)]
            assert not commands, f"{block.where}: a command in a block that does not run: {commands[0]!r}"


@pytest.mark.parametrize("page", [*PAGES, *MODEL_READMES], ids=name)
def test_commands_parse(page):
    for where, line, complete in vcbench_lines(page):
        try:
            parse(line, complete=complete)
        except Exception as error:
            pytest.fail(f"{where}: `{line}`: {error}")


def test_blocks_are_read_as_described(tmp_path, monkeypatch):
    monkeypatch.setattr("doc_pages.ROOT", tmp_path)
    page = tmp_path / "p.md"
    page.write_text(
        "---\nrun: slow\n---\n<!-- setup\necho hidden\n-->\n\n"
        "```console\n$ echo a \\\n    b\na b\n$ false  # exit 1\n```\n"
        "<!-- not run: GPU -->\n```sh\nnvidia-smi\n```\n```{code-block} python\n:caption: x.py\n\nX = 1\n```\n"
    )
    setup, console, gpu, file = read_blocks(page)
    assert front_matter(page) == {"run": "slow"}
    assert setup.hidden and setup.text == "echo hidden"
    first, second = commands_of(console)
    assert (first.text, first.expected, second.text, second.status) == ("echo a b", ("a b",), "false", 1)
    assert gpu.not_run == "GPU" and file.options == {"caption": "x.py"} and console.where == "p.md:9"
    run = PageRun(tmp_path)
    for block in (setup, console, gpu, file):
        run.run(block)
    assert (tmp_path / "x.py").read_text().strip() == "X = 1"
    page.write_text("```console\n$ echo a\nb\n```\n")
    with pytest.raises(PageError, match=r"p.md:2: `echo a` does not print 'b'"):
        run.run(read_blocks(page)[0])
    page.write_text("```sh\nfalse\n```\n")
    with pytest.raises(PageError, match="ended with 1, not 0"):
        run.run(read_blocks(page)[0])


def test_expected_lines_come_in_order_with_gaps():
    output = "rank  entry\n1  mean  0.25\n2  ridge  0.5\n"
    assert missing_line(("rank entry", "...", "2 ridge ..."), output) is None
    assert missing_line(("2 ridge ...", "1 mean ..."), output) == "1 mean ..."
    assert missing_line(("1 mean",), output) == "1 mean"
