"""What the further heads are asked for, and by whom they are taught.

A further head i, which looks o_i tokens ahead, has a teacher at position t: head 1 at position t + o_i - 1, whose
distribution p is of the very token x_{t + o_i} that head i gives the distribution q of. It comes from the same forward,
detached: no gradient reaches head 1, trunk or unembedding through p. With the overlap alpha = sum_v min(p_v, q_v), the
probability that a draft of q is accepted when p is sampled from (Leviathan et al., arXiv 2211.17192):

    teacher_kl   KL = sum_v p_v log(p_v / q_v)
    tv           1 - alpha, the total variation distance of p and q
    lk_alpha     -log alpha
    lk_lambda    w_i KL + (1 - w_i) (1 - alpha), w_i = kl_scale exp(-kl_decay mean alpha); the mean over head i's taught
                 positions, of the batch on all ranks, carries no gradient

Sources. `teacher_kl` is the distillation of MTP-D (arXiv 2603.23911v1), of which an abstract and a summary were at
hand: its weights, and how its top N entries are normalised, are not known here. `lk_alpha` and `lk_lambda` are the LK
losses (arXiv 2602.23881, an abstract), as in SpecForge's `specforge/core/lk_loss.py` at commit a6b6b02, whose defaults
`kl_scale` and `kl_decay` have. Of `tv` alone the same paper is reported to find that it trains badly from scratch.

With c_i = the mean of the divergence over the positions that have a teacher, and CE_i the cross-entropy, the mean over
all valid positions:   L_i = (1 - weight) CE_i + weight c_i + latent d_i,

    d_i = the mean over the same positions, and over the coordinates, of smooth_l1(h_i,t - sg[h_1,t+o_i-1])

h being the states that the unembedding reads, sg the detached one, smooth_l1(x) = x^2 / 2 up to 1, then |x| - 1/2. With
`teacher_kl`, weight 1, `stop_gradient: unembedding` and the kind `next_latent` that is NextLat (arXiv 2511.05963): a
network of (h_t, embedding of x_{t+1}), rolled over d = n - 1 steps, estimates the detached h_{t+1}, and its tokens'
distribution is pulled to that of h_{t+1} by KL, through an unembedding that this does not move. Both terms are means
over the steps, of weight 1, and gradients reach h_t and the embedding. The code follows the authors' release
(JaydenTeoh/NextLat, `compute_loss` of `models/model_nextlat.py` and its defaults, at a commit that is not known); of
the paper an abstract was at hand. One difference: masked targets (prompts) have no d_i here, and there they have.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch
from torch import Tensor

from mtp_lightning.errors import InputError
from mtp_lightning.ranges import Range, Weight, check_ranges
from mtp_lightning.shapes import Bool

Target = Literal["token", "teacher_kl", "tv", "lk_alpha", "lk_lambda"]
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True)
class TeacherConfig:
    """How head 1 teaches the further heads.

    Raises:
        InputError: a number outside its range.
    """

    weight: Annotated[float, Range(above=0, most=1)] = 0.5
    """The divergence's share of a further head's loss; the token's cross-entropy has the rest. Positions without a
    teacher, the last o_i - 1 of a window, have the cross-entropy alone, with that same rest as its weight."""
    top: Annotated[int, Range(least=1, most=2**24)] | None = None
    """The teacher's most probable entries alone, renormalised to the sum 1, teach; by default all of the vocabulary."""
    kl_scale: Annotated[float, Range(least=0, most=1)] = 1.0
    """`lk_lambda`: the weight of KL where nothing overlaps."""
    kl_decay: Annotated[float, Range(least=0, most=1000)] = 1.0
    """`lk_lambda`: how fast that weight falls with the mean overlap."""

    latent: Weight = 0.0
    """Weight of the distance between a further head's state and head 1's where it predicts the same token; of heads
    that read the tokens in between (`sequential`, `recurrent`, `next_latent`, `fetch`)."""

    def __post_init__(self) -> None:
        check_ranges("model.loss.teacher", TeacherConfig, vars(self))

    def check_target(self, target: Target) -> None:
        """
        Raises:
            InputError: a setting that means nothing to the target.
        """
        own: dict[str, tuple[Target, ...]] = {
            "weight": TARGETS[1:],
            "top": TARGETS[1:],
            "latent": TARGETS[1:],
            "kl_scale": ("lk_lambda",),
            "kl_decay": ("lk_lambda",),
        }
        for name, targets in own.items():
            if target not in targets and getattr(self, name) != getattr(TeacherConfig, name):
                raise InputError(
                    f"model.loss.teacher.{name} goes with model.loss.target {' or '.join(targets)}, and that is "
                    f"'{target}'"
                )


def find_taught(valid_NBT: Bool[Tensor, "N B T"], offsets: tuple[int, ...]) -> Bool[Tensor, "N B T"]:
    """True where a head has a target and a teacher: the position before the target is one of the window's inputs.

    A valid target lies in its input's document, and so does the position before it. Head 1 has no teacher.

    Example with offsets (1, 3), T = 4, all valid: head 1 -> 0 0 0 0, head 2 -> 1 1 0 0.
    """
    taught_NBT = torch.zeros_like(valid_NBT)
    for i, offset in enumerate(offsets[1:], start=1):
        count = max(valid_NBT.shape[2] + 1 - offset, 0)
        taught_NBT[i, :, :count] = valid_NBT[i, :, :count]
    return taught_NBT
