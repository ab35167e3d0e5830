"""What a model gives away about who was in its training data: the attack that every later one is compared with.

An image whose loss is low was probably trained on (Yeom et al., 2018). An area under the curve of 0.5 is a coin's, 1 a
model that knows its training data by heart. The training and the test images have to be of the same kind: where they
differ by themselves, this measures that difference too.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from trainer import files
from trainer.data import Split
from trainer.errors import BadOutput
from trainer.evaluate import open_run
from trainer.runfiles import MEMBERSHIP
from trainer.verdicts import fingerprint, judge

MOST = 10_000  # examples of each side: its interval is a hundredth wide then
RESAMPLES = 1000


@dataclass(frozen=True)
class Membership:
    """How well losses tell training from test examples; each interval holds 95 % of the bootstrap's resamples.

    `advantage` is, at the threshold of the mean training loss, the share of training examples called so, less the
    share of test examples called so. `worst_advantage` is that of the best threshold there is.
    """

    auc: float
    auc_interval: tuple[float, float]
    advantage: float
    advantage_interval: tuple[float, float]
    worst_advantage: float
    train_loss: float
    test_loss: float
    members: int
    others: int


def membership_run(out: Path, moved: Mapping[str, object], say: Callable[[str], None]) -> Membership:
    """Attack a run's model; the result is membership.json too. Raises BadInput."""
    run = open_run(out, moved)
    say(f"weights {run.weights}")
    members = judge(run.model, run.data, _some(run.data.train)).losses
    others = judge(run.model, run.data, _some(run.data.test)).losses
    found = tell_apart(members, others)
    try:
        files.replace_json(out / MEMBERSHIP, {"weights": fingerprint(run.model), **asdict(found)})
    except OSError as error:
        raise BadOutput(f"cannot write {out / MEMBERSHIP}: {error.strerror or error}", "Make room there.") from None
    return found


def tell_apart(members: NDArray[np.floating], others: NDArray[np.floating], seed: int = 0) -> Membership:
    """How well a low loss tells `members` [M] from `others` [N]."""
    members, others = members.astype(np.float64), others.astype(np.float64)
    losses = np.concatenate([members, others])
    _, place = np.unique(losses, return_inverse=True)  # equal losses share a place
    places = int(place.max()) + 1
    mine, theirs = place[: len(members)], place[len(members) :]
    # Yeom's threshold is the mean training loss, and moves no more: the last place at or below it
    threshold = int(place[losses <= members.mean()].max(initial=-1))

    def figures(mine: NDArray[np.intp], theirs: NDArray[np.intp]) -> tuple[float, float, float]:
        called = np.bincount(mine, minlength=places) / len(mine)
        wrongly = np.bincount(theirs, minlength=places) / len(theirs)
        at_or_below, wrongly_below = np.cumsum(called), np.cumsum(wrongly)
        auc = float((wrongly * (at_or_below - called / 2)).sum())  # a tie counts half
        apart = at_or_below - wrongly_below
        return auc, float(apart[threshold]) if threshold >= 0 else 0.0, max(0.0, float(apart.max()))

    auc, advantage, worst = figures(mine, theirs)
    draw = np.random.default_rng(seed)
    resampled = np.array(
        [
            figures(mine[draw.integers(0, len(mine), len(mine))], theirs[draw.integers(0, len(theirs), len(theirs))])
            for _ in range(RESAMPLES)
        ]
    )
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    return Membership(
        auc=round(auc, 4),
        auc_interval=(round(float(low[0]), 4), round(float(high[0]), 4)),
        advantage=round(advantage, 4),
        advantage_interval=(round(float(low[1]), 4), round(float(high[1]), 4)),
        worst_advantage=round(worst, 4),
        train_loss=round(float(members.mean()), 6),
        test_loss=round(float(others.mean()), 6),
        members=len(members),
        others=len(others),
    )


def lines(found: Membership) -> list[str]:
    """The result as text."""
    return [
        f"{found.members:,} training and {found.others:,} test examples, "
        f"mean loss {found.train_loss:.4f} and {found.test_loss:.4f}",
        f"AUC        {found.auc:.3f}  "
        f"(95 %: {found.auc_interval[0]:.3f} to {found.auc_interval[1]:.3f}; 0.5 is a coin)",
        f"advantage  {found.advantage:.3f}  "
        f"(95 %: {found.advantage_interval[0]:.3f} to {found.advantage_interval[1]:.3f}; at the mean training loss), "
        f"at most {found.worst_advantage:.3f}",
    ]


def _some(split: Split) -> Split:
    """At most MOST of the split, drawn the same each time."""
    if len(split) <= MOST:
        return split
    kept = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:MOST].to(split.targets.device)
    return Split(split.inputs[kept], split.targets[kept])
