"""Shares of what is counted over tiles, with intervals that allow for tiles of one document being alike.

Tiles of a document are about the same things, so that n of them tell less than n independent ones. How much less is not
supposed but measured: by how much the share scatters over documents, against how much it would if the tiles were
independent (the design effect; Rao and Scott 1992). n over the design effect, the effective size, takes the place of n
in Wilson's interval.

The measurement scatters itself, the more the fewer documents there are, so it is enlarged as Student's t is against the
normal distribution. It is never below 1, where the tiles are as good as independent, and never above what it would be
if those of one document were all the same (Kish). On simulated tiles whose documents differ as little or as much as
those of real features, the intervals held the truth in 93 to 97 % of cases, averaged over features.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from autointerp import stats
from autointerp.means import t_point

FEWEST_DOCUMENTS = 10
"""From here on the design effect can be measured."""
HARDLY_ALIKE = 1.25
"""Where it cannot be larger than this, since almost every tile has a document of its own, it need not be measured."""


def design_effect(hits: ArrayLike, documents: Sequence[Hashable]) -> float | None:
    """How many of these tiles tell as much of the share of hits as one independent tile. `hits` are 0 or 1, and tile i
    is from `documents[i]`. None where the documents are too few to tell, and where there is no tile."""
    hit = np.asarray(hits, dtype=np.float64)
    if hit.size != len(documents):
        raise ValueError(f"{hit.size} tiles need as many documents, not {len(documents)}")
    if not hit.size:
        return None
    of, index = stats.numbered(documents)
    groups, sizes = len(index), np.bincount(of).astype(np.float64)
    most = float(sizes @ sizes) / hit.size
    if groups < FEWEST_DOCUMENTS:
        return most if most <= HARDLY_ALIKE else None
    share = float(hit.mean())
    if share in (0.0, 1.0):
        return 1.0  # all alike, across documents too
    apart = np.bincount(of, weights=hit - share)
    scatter = float(apart @ apart) / (hit.size * share * (1 - share)) * groups / (groups - 1)
    return min(max(1.0, scatter * (t_point(groups - 1) / stats.Z95) ** 2), most)


def largest_effect(documents: Sequence[Hashable]) -> float:
    """The design effect if all tiles of a document were the same, the largest that there can be (Kish); 1 without
    tiles."""
    sizes = np.bincount(stats.numbered(documents)[0]).astype(np.float64)
    return float(sizes @ sizes) / len(documents) if len(documents) else 1.0


def share_of(hits: ArrayLike, documents: Sequence[Hashable], z: float = stats.Z95) -> stats.Estimate:
    """The share of hits, with Wilson's interval of the effective size; no interval where that is not known, and nothing
    but `n` without tiles. `z`: standard errors on either side."""
    return share_with_effect(hits, design_effect(hits, documents), z)


def share_with_effect(hits: ArrayLike, effect: float | None, z: float = stats.Z95) -> stats.Estimate:
    """`share_of` where the design effect is known, or None."""
    hit = np.asarray(hits, dtype=np.float64)
    if not hit.size:
        return stats.Estimate(None, None, None, 0)
    share = float(hit.mean())
    if effect is None:
        return stats.Estimate(share, None, None, hit.size)
    return stats.Estimate(share, *stats.wilson_of_share(share, hit.size / effect, z), hit.size)
