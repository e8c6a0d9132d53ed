"""Checkpoint folders: three key layouts, what is ignored and what is new, broken and hostile files."""

from __future__ import annotations

import json
import pickle
import zipfile
from contextlib import suppress

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from vcbench.baselines.scgpt.checkpoint import (  # noqa: E402
    canonical_name,
    layout_name,
    load_pretrained,
    read_checkpoint,
    write_checkpoint,
)
from vcbench.baselines.scgpt.config import ScGPTConfig  # noqa: E402
from vcbench.baselines.scgpt.model import TransformerGenerator  # noqa: E402
from vcbench.baselines.scgpt.vocabulary import Vocabulary, map_genes, read_aliases  # noqa: E402
from vcbench.data_specs.errors import ModelError  # noqa: E402

GENES = [f"G{i:03d}" for i in range(20)]
CONFIG = ScGPTConfig(d_model=16, nhead=2, nlayers=3, d_hid=24)
OFFICIAL_ARGS = {
    "data_source": "/somewhere/cellxgene",
    "embsize": 16,
    "nheads": 2,
    "d_hid": 24,
    "nlayers": 3,
    "n_layers_cls": 3,
    "dropout": 0.2,
    "n_bins": 51,
    "input_style": "binned",
    "max_seq_len": 1200,
    "mask_ratio": [0.25, 0.5, 0.75],
    "pad_token": "<pad>",
    "MVC": True,
    "fast_transformer": True,
    "fp16": True,
}


def official(folder, *, layout="flash", seed=1, prefix="", genes=GENES):
    """A folder as the project publishes them: pre-training tensors only, vocabulary not sorted by id."""
    vocabulary = Vocabulary((*genes, "<pad>", "<cls>", "<eoc>"))
    torch.manual_seed(seed)
    net = TransformerGenerator(CONFIG, len(vocabulary), vocabulary.pad, mvc="inner product")
    keep = ("encoder.", "value_encoder.", "transformer_encoder.", "mvc_decoder.")
    state = {prefix + layout_name(n, layout): v for n, v in net.state_dict().items() if n.startswith(keep)}
    state |= {
        f"{prefix}decoder.fc.{i}.{part}": torch.zeros(1) for i in (0, 2, 4) for part in ("weight", "bias")
    }
    state[f"{prefix}flag_encoder.weight"] = torch.zeros(2, 16)
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "best_model.pt")
    order = np.random.default_rng(0).permutation(len(vocabulary))
    (folder / "vocab.json").write_text(json.dumps({vocabulary.tokens[i]: int(i) for i in order}))
    (folder / "args.json").write_text(json.dumps(OFFICIAL_ARGS))
    return net, vocabulary


def fresh(n_tokens, pad, seed=9):
    torch.manual_seed(seed)
    return TransformerGenerator(CONFIG, n_tokens, pad)


@pytest.mark.parametrize("layout", ["native", "flash", "flash-wrapped"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_layout_loads_with_nothing_unexpected(tmp_path, layout, prefix):
    source, vocabulary = official(tmp_path, layout=layout, prefix=prefix)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.variant is None and checkpoint.vocabulary == vocabulary
    assert dict(checkpoint.sizes) == {"d_model": 16, "nhead": 2, "d_hid": 24, "nlayers": 3, "n_layers_cls": 3}
    net = fresh(len(vocabulary), vocabulary.pad)
    report = load_pretrained(net, checkpoint)
    # Nine tensors before the transformer, twelve in each layer.
    assert len(report.loaded) == 9 + 12 * 3
    assert {name.split(".")[0] for name in report.ignored} == {"flag_encoder", "decoder", "mvc_decoder"}
    assert {name.split(".")[0] for name in report.new} == {"pert_encoder", "decoder", "cls_decoder"}
    assert (report.rows_loaded, report.rows_new) == (23, 0)
    mine, theirs = net.state_dict(), source.state_dict()
    for name in report.loaded:
        assert torch.equal(mine[name], theirs[name]), name
    assert "9 of the network" not in report.text() and "45 tensors loaded" in report.text()


def test_the_official_sizes_need_153_tensors(tmp_path):
    config = ScGPTConfig(d_model=8, nhead=8, nlayers=12, d_hid=8)
    vocabulary = Vocabulary.of_genes(GENES)
    write_checkpoint(TransformerGenerator(config, 23, vocabulary.pad), vocabulary, tmp_path, layout="flash")
    checkpoint = read_checkpoint(tmp_path)
    prefixes = ("encoder.", "value_encoder.", "transformer_encoder.")
    report = load_pretrained(TransformerGenerator(config, 23, 20), checkpoint, prefixes=prefixes)
    assert len(report.loaded) == 153


def test_names_map_both_ways():
    names = [f"transformer_encoder.layers.0.self_attn.{n}" for n in ("in_proj_weight", "out_proj.bias")]
    for layout in ("native", "flash", "flash-wrapped"):
        assert [canonical_name("module." + layout_name(name, layout)) for name in names] == names
    assert layout_name(names[0], "flash-wrapped").endswith("self_attn._impl.Wqkv.weight")


def test_rows_are_copied_by_token(tmp_path):
    source, vocabulary = official(tmp_path)
    tokens = map_genes([*GENES[5:], "NEW1", "NEW2"], ["TARGET"], vocabulary, unmeasured="token")
    assert tokens.vocabulary.tokens[23:] == ("NEW1", "NEW2", "TARGET")
    assert tokens.ids.tolist() == [*range(5, 20), 23, 24] and tokens.vocabulary.pad == 20
    net = fresh(26, 20)
    before = net.encoder.embedding.weight.detach().clone()
    report = load_pretrained(net, read_checkpoint(tmp_path), tokens)
    assert (report.rows_loaded, report.rows_new) == (23, 3)
    after = net.encoder.embedding.weight
    assert torch.equal(after[:23], source.encoder.embedding.weight) and torch.equal(after[23:], before[23:])


def test_a_renamed_or_misshapen_tensor_is_refused(tmp_path):
    _, vocabulary = official(tmp_path)
    state = torch.load(tmp_path / "best_model.pt", weights_only=True)
    net = fresh(len(vocabulary), vocabulary.pad)
    name = "transformer_encoder.layers.1.linear2.bias"

    def refused(changed, message):
        torch.save(changed, tmp_path / "best_model.pt")
        with pytest.raises(ModelError, match=message):
            load_pretrained(net, read_checkpoint(tmp_path))

    value = state.pop(name)
    refused({**state, name.replace("linear2", "linear9"): value}, r"linear9.bias; missing: .*linear2.bias")
    refused(state, r"missing: transformer_encoder.layers.1.linear2.bias \(1 in all\)")
    refused({**state, name: torch.zeros(3)}, r"linear2.bias \(3,\), here \(16,\)")
    refused(
        {**state, name: value, canonical_name(next(k for k in state if "Wqkv" in k)): value}, "twice, in two"
    )
    torch.save({**state, name: value}, tmp_path / "best_model.pt")
    short = fresh(len(vocabulary), vocabulary.pad)
    assert len(load_pretrained(short, read_checkpoint(tmp_path), strict=False).loaded) == 45


def test_nested_state_dicts_and_old_files_load(tmp_path):
    _, vocabulary = official(tmp_path)
    state = torch.load(tmp_path / "best_model.pt", weights_only=True)
    for found, options in (
        ({"state_dict": state, "epoch": 3}, {}),
        ({"model": state}, {}),
        (state, {"_use_new_zipfile_serialization": False}),
    ):
        torch.save(found, tmp_path / "best_model.pt", **options)
        report = load_pretrained(fresh(len(vocabulary), vocabulary.pad), read_checkpoint(tmp_path))
        assert len(report.loaded) == 45


@pytest.mark.parametrize("variant", ["affine", "legacy_bn"])
def test_fine_tuned_checkpoints_load_whole(tmp_path, variant):
    config = ScGPTConfig(d_model=16, nhead=2, nlayers=2, d_hid=24, variant=variant)
    vocabulary = Vocabulary.of_genes(GENES)
    source = TransformerGenerator(config, len(vocabulary), vocabulary.pad)
    write_checkpoint(source, vocabulary, tmp_path, layout="flash-wrapped")
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.variant == variant
    other = checkpoint.configured(ScGPTConfig())
    assert (other.variant, other.d_model, other.nlayers) == (variant, 16, 2)
    net = TransformerGenerator(other, len(vocabulary), vocabulary.pad)
    report = load_pretrained(net, checkpoint)
    assert not report.new and not report.ignored
    for name, value in source.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


class Hostile:
    """Writes a file when a pickle runs it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("form", ["archive", "old", "bare pickle", "inside a state dict"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, form):
    official(tmp_path / "folder")
    path, trace = tmp_path / "folder" / "best_model.pt", tmp_path / "ran"
    state = torch.load(path, weights_only=True)
    if form == "bare pickle":
        path.write_bytes(pickle.dumps({"encoder.embedding.weight": Hostile(trace)}, protocol=2))
    else:
        found = Hostile(trace) if form != "inside a state dict" else {**state, "x": Hostile(trace)}
        torch.save(found, path, _use_new_zipfile_serialization=form != "old")
    with pytest.raises(ModelError, match=r"refused, it holds more than tensors and nothing of it was run"):
        read_checkpoint(tmp_path / "folder")
    assert not trace.exists()
    # The file does what it is meant to when something does run it.
    with suppress(RuntimeError):
        torch.load(path, weights_only=False)
    assert trace.exists()


def test_broken_files_are_refused(tmp_path):
    net, vocabulary = official(tmp_path)
    path = tmp_path / "best_model.pt"
    whole = path.read_bytes()

    def refused(message):
        with pytest.raises(ModelError, match=message):
            load_pretrained(fresh(len(vocabulary), vocabulary.pad), read_checkpoint(tmp_path))

    for cut in (0, 3, 100, len(whole) // 2, len(whole) - 50):
        path.write_bytes(whole[:cut])
        refused("not a readable file of tensors|refused, it holds more than tensors")
    # A damaged value: the archive's directory is intact, one record's content is not.
    with zipfile.ZipFile(path.parent / "x.zip", "w"):
        pass
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        info = max(archive.infolist(), key=lambda item: item.file_size)
    at = info.header_offset + len(info.filename) + 200
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    refused("does not match its checksum")
    torch.save({"a": 1}, path)
    refused("holds no state dict")
    torch.save({}, path)
    refused("holds no state dict")
    state = {name: value.clone() for name, value in net.state_dict().items()}
    state["value_encoder.norm.bias"][0] = float("nan")
    torch.save(state, path)
    refused(r"1 tensors are not finite \(first: value_encoder.norm.bias\)")
    torch.save({"x": torch.zeros(2)}, path)
    refused("no encoder.embedding.weight")
    path.unlink()
    refused("no scGPT checkpoint; best_model.pt missing")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"nheads": None}, "args.json has no 'nheads'"),
        ({"embsize": 32}, "embsize is 32 in args.json and 16 in the weights"),
        ({"nlayers": 2}, "nlayers is 2"),
        ({"nheads": "two"}, "nheads in args.json is 'two'"),
        ({"nheads": 5}, "5 heads do not divide the width 16"),
        (None, "not a JSON object"),
    ],
)
def test_arguments_must_fit_the_weights(tmp_path, args, message):
    official(tmp_path)
    text = (
        "[]"
        if args is None
        else json.dumps({k: v for k, v in {**OFFICIAL_ARGS, **args}.items() if v is not None})
    )
    (tmp_path / "args.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        read_checkpoint(tmp_path)


def test_sizes_come_from_the_weights_where_arguments_are_silent(tmp_path):
    official(tmp_path)
    (tmp_path / "args.json").write_text('{"nheads": 4, "anything": [1]}')
    assert dict(read_checkpoint(tmp_path).sizes)["nhead"] == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"A": 0, "B": 0}', "'B' has 0"),
        ('{"A": 0, "B": 2}', "'B' has 2"),
        ('{"A": "0"}', "expected one object of tokens and whole numbers"),
        ("[1", "not a vocabulary"),
        ('{"A": 0}', "23 token vectors for the 4 tokens"),
    ],
)
def test_a_vocabulary_must_be_a_bijection_of_the_right_size(tmp_path, text, message):
    official(tmp_path)
    (tmp_path / "vocab.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        read_checkpoint(tmp_path)


BASE = Vocabulary(("A", "B", "C", "ENSG00000000001", "<pad>", "<cls>", "<eoc>"))


def test_genes_outside_the_vocabulary():
    genes, labels = ["C", "X", "A", "Y"], ["A", "Y+C", "Z"]
    extend = map_genes(genes, labels, BASE)
    assert extend.ids.tolist() == [2, 7, 0, 8] and extend.modelled.all()
    assert extend.known.tolist() == [True] * 7 + [False] * 2
    pad = map_genes(genes, labels, BASE, oov="pad")
    assert pad.ids.tolist() == [2, 4, 0, 4] and len(pad.vocabulary) == 7
    drop = map_genes(genes, labels, BASE, oov="drop")
    # Y is perturbed in a label, so it stays.
    assert drop.modelled.tolist() == [True, False, True, True] and drop.ids[3] == 7
    assert extend.place("Y+C").columns == (3, 0) and extend.place("Z").missing == ("Z",)


def test_unmeasured_targets_get_tokens_and_slots():
    tokens = map_genes(["C", "X"], ["A", "A+Z", "control", "C+Q+Z"], BASE, unmeasured="token")
    assert dict(tokens.targets) == {"A": 0, "Q": 8, "Z": 9} and tokens.n_slots == 2
    place = tokens.place("A+C+Z")
    assert place.columns == (0,) and place.extra == (0, 9) and not place.missing
    scratch = map_genes(["C", "X"], ["A"], None, unmeasured="token")
    assert scratch.vocabulary.tokens == ("C", "X", "<pad>", "<cls>", "<eoc>", "A")
    assert scratch.vocabulary.pad == 2 and not scratch.known.any()


def test_other_names_of_genes(tmp_path):
    (tmp_path / "aliases.tsv").write_text("OLDB\tB\nOTHERB\tB\nOLDA\tA\n")
    aliases = read_aliases(tmp_path / "aliases.tsv")
    tokens = map_genes(["OLDB", "OTHERB", "OLDA", "A", "ENSG00000000001.7"], [], BASE, aliases=aliases)
    # B goes to the first that asks for it, and A is measured under its own name.
    assert dict(tokens.renamed) == {"OLDB": "B", "ENSG00000000001.7": "ENSG00000000001"}
    assert tokens.ids.tolist() == [1, 7, 8, 0, 3] and len(set(tokens.ids.tolist())) == 5
    (tmp_path / "wide.csv").write_text("A,B,C\n")
    with pytest.raises(ModelError, match=r"wide.csv:1: expected two columns"):
        read_aliases(tmp_path / "wide.csv")
    with pytest.raises(ModelError, match="gene 'A' occurs twice"):
        map_genes(["A", "B", "A"], [], BASE)
