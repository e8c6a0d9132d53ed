"""Import scgpt where torchtext and IPython cannot be installed: the network needs neither."""

from __future__ import annotations

import sys
import types
import warnings


def transformer_generator():
    """scgpt's TransformerGenerator. Empty modules stand in for torchtext and IPython."""
    vocab = types.ModuleType("torchtext.vocab")
    vocab.Vocab = type("Vocab", (), {})
    torchtext = types.ModuleType("torchtext")
    torchtext.vocab = vocab
    notebook = types.ModuleType("IPython")
    notebook.get_ipython = lambda: None
    for module in (torchtext, vocab, notebook):
        sys.modules.setdefault(module.__name__, module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from scgpt.model import TransformerGenerator
    return TransformerGenerator
