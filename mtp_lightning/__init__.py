"""Multi-token prediction experiments on Lightning and MLflow (arXiv 2404.19737).

The shape vocabulary, used by every signature of the package:

    B  batch, rows of a batch               T  positions with an input token
    N  future tokens = prediction heads     L  window = T + horizon tokens (T + N without gaps)
    D  width of the trunk                   V  vocabulary
    H  attention heads                      K  key/value heads; in a loss, targets of one row
    E  size of one attention head           S  hidden states of all heads, N or 1; in a cache, positions held
    R  rows of a loss = S B T               M  losses that are summed

Head i (1-based) predicts the i-th token ahead. "Heads" alone means prediction heads.
Importing this module is cheap on purpose: `mtp --help` must not load torch.
"""

__version__ = "0.1.0"
