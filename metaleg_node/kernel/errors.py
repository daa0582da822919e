"""What can go wrong between this program and the kernel, in words that an operator can act upon."""

from __future__ import annotations

import errno
import os

_ADVICE = {
    errno.EPERM: "the capability CAP_NET_ADMIN is missing: run as root, or grant it to the service",
    errno.EACCES: "permission denied: run as root, or grant the service CAP_NET_ADMIN",
    errno.EROFS: "it is read-only for this service: its systemd unit needs ReadWritePaths=/proc/sys/net",
}


class KernelError(Exception):
    """The kernel, or a program that speaks to it, refused something.

    The message says what was to be done, to which object, and why it was refused; `code` is the errno, 0 if none.
    """

    def __init__(self, message: str, *, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class MissingProgramError(KernelError):
    """A program that this one needs is not installed; the message names the package."""


def refusal(what: str, code: int, detail: str = "") -> KernelError:
    """The error for `what` ("add rule ...") that failed with an errno, with advice where there is some.

    `detail` is the kernel's own explanation (netlink extended acknowledgement); it replaces the generic text.
    """
    reason = _ADVICE.get(code) or detail or os.strerror(code)
    return KernelError(f"cannot {what}: {reason} (errno {code})", code=code)
