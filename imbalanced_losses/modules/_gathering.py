"""Where the shells meet ``torch.distributed``."""

from __future__ import annotations

import torch.distributed as dist


def check_local(gather_distributed: bool | None) -> None:
    """Refuse what this version cannot do: gather the rows of several ranks.

    ``None`` gathers where a process group of more than one rank is initialised, ``False`` never, ``True`` always.
    """
    initialised = dist.is_available() and dist.is_initialized()
    if gather_distributed and not initialised:
        raise RuntimeError("expected an initialised process group for gather_distributed=True, got none")
    if gather_distributed is not False and initialised and dist.get_world_size() > 1:
        raise NotImplementedError("gathering across ranks is not in this version: pass gather_distributed=False")
