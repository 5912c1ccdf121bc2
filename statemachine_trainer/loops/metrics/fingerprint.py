"""Which weights a metric was measured with: a fingerprint that tells two sets of weights apart."""

from __future__ import annotations

import hashlib
from typing import Final

import torch
from torch import nn

_LOOKED_AT: Final = 16


def fingerprint_of_weights(model: nn.Module) -> str:
    """Return a fingerprint of the parameters of a model, the same wherever it is computed.

    A few numbers of each parameter are looked at, evenly spread: what replaces weights, such as an
    average of them, changes nearly all. Reading them waits for the device once.

    Args:
        model: The model. Parameters without a shape or without values as yet do not count. Those that are spread over
            several ranks count by what is here.
    """
    samples = []
    with torch.no_grad():
        for parameter in model.parameters():
            if isinstance(parameter, nn.parameter.UninitializedParameter) or parameter.is_meta:
                continue
            local = parameter.to_local() if hasattr(parameter, "to_local") else parameter
            flat = local.detach().reshape(-1)
            places = flat[:: max(1, flat.numel() // _LOOKED_AT)][: _LOOKED_AT + 1]
            if places.is_complex():
                places = torch.view_as_real(places).reshape(-1)
            samples.append(places.float())
        by_device: dict[torch.device, list[torch.Tensor]] = {one.device: [] for one in samples}
        for one in samples:
            by_device[one.device].append(one)
        read = [torch.cat(many).cpu().numpy().tobytes() for many in by_device.values()]
    return hashlib.blake2b(b"".join(read), digest_size=8).hexdigest()
