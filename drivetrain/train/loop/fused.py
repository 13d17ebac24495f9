"""Adam whose one kernel is called with arguments that were looked up once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from drivetrain.train.loop.uncompiled import Uncompiled, step_of

_REFUSED = ("amsgrad", "maximize", "capturable", "differentiable")
_STATE = ("exp_avg", "exp_avg_sq", "step")

Ready = tuple[dict[str, Any], list[nn.Parameter], list[list[Tensor]]]
"""A group, its parameters, and of each what is remembered, by name in :data:`_STATE`."""


# With hooks and a record, as torch has it.
_wrap: Any = torch.optim.Optimizer.profile_hook_step
_torch_step: Any = _wrap(step_of(torch.optim.Adam))


class _Prepared(torch.optim.Adam, Uncompiled):
    """The same arithmetic in the same kernel, and so the same bits.

    torch looks for each parameter's state, groups tensors by device and type and opens a record for
    the profiler, at each step anew: for a small model as long as the kernel itself takes. All of it
    is as it was, unless a parameter has no gradient or the state was loaded: then torch's own step
    is taken.
    """

    _ready: list[Ready] | None = None

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """As :meth:`torch.optim.Adam.step`."""
        hooks = self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks
        if self._ready is not None and closure is None and not hooks:
            gradients = [[p.grad for p in parameters] for _, parameters, _ in self._ready]
            if not any(gradient is None for each in gradients for gradient in each):
                self._straight(self._ready, gradients)
                return None
        loss = _torch_step(self, closure)
        self._ready = self._prepare()
        return loss

    # torch wraps a step that does not say this; its own step, within, is wrapped already.
    step.hooked = True  # pyright: ignore[reportFunctionMemberAccess]

    @torch.no_grad()
    def _straight(self, ready: list[Ready], gradients: list[list[Tensor | None]]) -> None:
        for (group, parameters, (first, second, steps)), found in zip(
            ready, gradients, strict=True
        ):
            torch._foreach_add_(steps, 1)  # pyright: ignore[reportPrivateImportUsage]
            decoupled = group["decoupled_weight_decay"]
            kernel: Any = torch._fused_adamw_ if decoupled else torch._fused_adam_  # pyright: ignore[reportPrivateImportUsage]
            kernel(
                *(parameters, found, first, second, [], steps),
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                grad_scale=None,
                found_inf=None,
            )

    def _prepare(self) -> list[Ready] | None:
        """What the kernel takes for each group; None where torch's own step must go on."""
        found: list[Ready] = []
        for group in self.param_groups:
            parameters = group["params"]
            kinds = {(type(p), p.device, p.dtype) for p in parameters}
            plain = len(kinds) == 1 and isinstance(group["lr"], float)
            if not (group["fused"] and plain) or any(group[name] for name in _REFUSED):
                return None
            if any(p.is_complex() or type(p) is not nn.Parameter for p in parameters):
                return None
            if any(name not in self.state[p] for p in parameters for name in _STATE):
                return None
            state = [[self.state[p][name] for p in parameters] for name in _STATE]
            found.append((group, parameters, state))
        return found

    def load_state_dict(self, state_dict: Any) -> None:
        """As torch's own; what was looked up is let go."""
        self._ready = None
        super().load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's own; what was looked up is let go."""
        self._ready = None
        super().add_param_group(param_group)


class Adam(_Prepared):
    """:class:`torch.optim.Adam`."""


class AdamW(torch.optim.AdamW, _Prepared):
    """:class:`torch.optim.AdamW`, whose decay goes past the moments."""

    step = _Prepared.step
