"""Run scgpt's network on given weights and cells; run by a Python that has scgpt installed.

Usage: python run_scgpt.py JOB.npz OUT.npz
JOB.npz: `meta` (JSON: constructor arguments, pad id, learning rate), `state/NAME`, genes, values, flags, targets.
OUT.npz: training and evaluation outputs, MVC, ECS and CLS, loss, gradients, losses and weights of three clipped Adam
steps, `pred_perturb` of the same cells, and the state-dict names.
"""

from __future__ import annotations

import copy
import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from upstream_scgpt import transformer_generator


class Cells(SimpleNamespace):
    """What pred_perturb reads of a batch: x, shape (cells * genes, 2), and one name per cell."""

    def to(self, device):
        return self


def main(job_path: str, out_path: str) -> None:
    """Run one job."""
    job = np.load(job_path, allow_pickle=False)
    meta = json.loads(str(job["meta"]))
    model = transformer_generator()(**meta["arguments"], vocab={"<pad>": meta["pad"]})
    state = {name[6:]: torch.as_tensor(job[name]) for name in job.files if name.startswith("state/")}
    model.load_state_dict(state, strict=True)
    out: dict[str, np.ndarray] = {
        "version": np.array(version("scgpt")),
        "names": np.array(list(model.state_dict())),
    }
    genes, values, flags, targets = (torch.as_tensor(job[k]) for k in ("genes", "values", "flags", "targets"))
    src = genes.repeat(len(values), 1)
    mask = torch.zeros_like(values, dtype=torch.bool)

    def forward(**more):
        return model(src, values, flags, src_key_padding_mask=mask, **more)

    model.train()
    found = forward(CLS=True, MVC=True, ECS=True)
    out |= {f"train/{name}": value.detach().numpy() for name, value in found.items()}
    loss = ((found["mlm_output"] - targets) ** 2).mean()
    loss.backward()
    out["loss"] = loss.detach().numpy()
    out |= {f"grad/{n}": p.grad.numpy().copy() for n, p in model.named_parameters() if p.grad is not None}
    model.eval()
    with torch.no_grad():
        out["eval/mlm_output"] = forward()["mlm_output"].numpy()
        x = torch.stack([values, flags.float()], dim=2).reshape(-1, 2)
        cells = Cells(x=x, pert=["p"] * len(values))
        found = model.pred_perturb(cells, include_zero_gene="all", gene_ids=genes.numpy(), amp=False)
        out["pred_perturb"] = found.numpy()
    model.cur_gene_token_embs = None
    trained = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(trained.parameters(), lr=meta["lr"])
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = ((trained(src, values, flags, src_key_padding_mask=mask)["mlm_output"] - targets) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss))
    out["steps/loss"] = np.array(losses)
    out |= {f"steps/state/{name}": value.detach().numpy() for name, value in trained.state_dict().items()}
    np.savez(out_path, **out)


if __name__ == "__main__":
    main(*sys.argv[1:])
