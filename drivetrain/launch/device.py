"""Which device tensors live on."""

from drivetrain.core.errors import wrong
from drivetrain.core.need import need


def resolve(device: str) -> str:
    """The device that a site means, as torch names it.

    Args:
        device: ``auto`` (the first GPU, or the CPU where there is none), ``cpu``, ``cuda``,
            ``cuda:1`` …

    Raises:
        ValueError: the device is not on this machine; nothing falls back in silence.
    """
    if device == "cpu":
        return "cpu"
    torch = need("torch", "train")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        count = torch.cuda.device_count()
        there = ", ".join(["auto", "cpu", *(f"cuda:{i}" for i in range(count))])
        raise wrong("device", device, there) from None
    return device
