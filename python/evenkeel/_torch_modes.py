"""Whether PyTorch watches the tensors of a call from outside: forward-mode AD, vmap, functorch, make_fx, fake tensors and whatever else sees
operations one by one. It sees PyTorch's own operations only; our kernels would write behind its back."""
from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_modes: Any = getattr(torch._C, "_len_torch_dispatch_stack", int)
_transforms: Any = getattr(torch._C, "_are_functorch_transforms_active", bool)
_NO_DISPATCH: Any = Tensor.__torch_dispatch__
_Parameter = nn.Parameter


def _is_watched(x: Any) -> bool:
    if not isinstance(x, Tensor):
        return False
    if type(x).__torch_dispatch__ is not _NO_DISPATCH:
        return True
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:  # type: ignore[no-untyped-call]
        return True
    try:
        x.data_ptr()
    except RuntimeError:  # a batch of tensors in the place of one, as vmap has them
        return x.layout is torch.strided
    return False


def watched(*tensors: Optional[Tensor]) -> bool:
    """True where PyTorch's own operations are to be used on these tensors."""
    if _modes() or _transforms():
        return True
    if forward_ad._current_level >= 0:
        return any(map(_is_watched, tensors))
    try:  # the usual case, in the least time
        for x in tensors:
            kind = type(x)
            if kind is Tensor or kind is _Parameter:
                x.data_ptr()  # type: ignore[union-attr]
            elif x is not None and _is_watched(x):
                return True
    except RuntimeError:
        return any(map(_is_watched, tensors))
    return False
