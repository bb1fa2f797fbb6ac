"""Attackers as measuring instruments, for Vireo's own models: how much dearer can a request be made, and at what cost?

Defensive research. Nothing here is part of a served system, and everything but ``requests`` needs a model's weights
on this machine, so these modules, unlike the rest of ``loadtest``, import ``models`` and torch.

    victim          pixels to logits, differentiable; and to answers, as they are served
    objectives      what attackers with weights want: one class each
    attack          descend an objective inside a bound, resumably
    blackbox        the same with answers alone (NES), with and without probabilities
    exits           early exits, delayed
    experts         requests that pile up on few experts
    requests        parameters that a server must refuse or bound

What each is and what it showed: docs/attacks.md.
"""
