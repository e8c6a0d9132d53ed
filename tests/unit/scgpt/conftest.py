"""Files and runs that the tests of this folder share."""

from __future__ import annotations

import pytest
from builders import standard_h5ad
from unit.scgpt.scgpt_runs import GENES, LABELS, TEST, train
from vcbench.data_specs.split_file import Split


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scgpt")
    data = standard_h5ad(folder / "data.h5ad", perturbations=LABELS, cells=10, controls=16)
    part = {label: "test" if label in TEST else "train" for label in LABELS} | {"G004": "validation"}
    return (
        data,
        Split({("K562", label): (part[label], "") for label in LABELS}, {"scheme": "by hand"}),
        folder,
    )


@pytest.fixture(scope="session")
def run(files):
    return train(files, "run")


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """A folder in the official layout over most of the genes, and some that the data lacks."""
    import torch
    from vcbench.baselines.scgpt.checkpoint import write_checkpoint
    from vcbench.baselines.scgpt.config import ScGPTConfig
    from vcbench.baselines.scgpt.model import TransformerGenerator
    from vcbench.baselines.scgpt.vocabulary import Vocabulary

    folder = tmp_path_factory.mktemp("pretrained") / "whole-human"
    vocabulary = Vocabulary((*GENES[4:][::-1], "OUT1", "ELSE", "<pad>", "<cls>", "<eoc>"))
    torch.manual_seed(2)
    net = TransformerGenerator(
        ScGPTConfig(d_model=12, nhead=3, nlayers=2, d_hid=10), len(vocabulary), vocabulary.pad
    )
    write_checkpoint(
        net, vocabulary, folder, layout="flash", extra={"flag_encoder.weight": torch.zeros(2, 12)}
    )
    state = torch.load(folder / "best_model.pt", weights_only=True)
    kept = {k: v for k, v in state.items() if not k.startswith(("pert_encoder", "decoder", "cls_decoder"))}
    torch.save(kept, folder / "best_model.pt")
    return folder, net, vocabulary
