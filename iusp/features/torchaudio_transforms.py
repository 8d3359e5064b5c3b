"""The only module that imports torchaudio.

The published torchaudio wheel contains a compiled extension that is linked against CUDA, so with a CPU build of torch
``import torchaudio`` raises OSError. This project uses only pure PyTorch functions of torchaudio. If the extension
cannot be loaded, an empty module replaces it before the import; otherwise nothing is changed.
"""

import sys
from types import ModuleType


def _extension_stand_in() -> ModuleType:
    module = ModuleType("torchaudio._extension")
    # torchaudio's import uses two flags, and a decorator for functions that need the extension.
    module.__dict__.update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False, _IS_ALIGN_AVAILABLE=False, fail_if_no_align=lambda function: function
    )
    return module


try:
    from torchaudio.functional import melscale_fbanks
except OSError:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        del sys.modules[name]
    sys.modules["torchaudio._extension"] = _extension_stand_in()
    from torchaudio.functional import melscale_fbanks

__all__ = ["melscale_fbanks"]
