"""How scripts get to nftables: by its library in this process, else by the program `nft`.

Starting a process, and ending it, takes longer than all that the kernel does for a small change. The library comes
with the program (both are Debian's nftables, the library as libnftables1). Large scripts go to the program, which
gives back the memory that they take.
"""

from __future__ import annotations

import logging
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Any

from metaleg_node.kernel import process
from metaleg_node.kernel.netlink.socket import NETLINK_NETFILTER

log = logging.getLogger(__name__)

_LIBRARY = "libnftables.so.1"
_BUFFERS = ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer")
_SMALL = 1 << 16
"""Characters of a script for the library."""


def by_program(script: str) -> str | None:
    """Carries out a script by the program alone; see `Nft.complaint`."""
    done = process.run(["nft", "-f", "-"], stdin=script)
    return done.stderr if done.returncode else None


class Nft:
    """Carries scripts out, in the network namespace of the thread that first does. The library's context, and with it
    its socket, is kept: a socket that is closed after a delete waits until the kernel is done with that."""

    def __init__(self) -> None:
        self._in_process: Callable[[bytes], bool] | None = None
        self._loaded = False
        # The library is not made for two threads in one context.
        self._lock = threading.Lock()

    def complaint(self, script: str) -> str | None:
        """Carries out a script, whole or not at all. Returns what nft says against it, None for done. Raises
        KernelError when nft cannot be used at all."""
        with self._lock:
            # The library reads no further than a NUL, and would take the half of a script for the whole.
            small = len(script) <= _SMALL and "\0" not in script
            if small and (run := self._library()) and run(script.encode()):
                return None
        # What the library refuses is refused once more, by who names the line.
        return by_program(script)

    def _library(self) -> Callable[[bytes], bool] | None:
        if not self._loaded:
            self._loaded = True
            try:
                context = _Context()
            except (ImportError, OSError, AttributeError, MemoryError) as error:
                # MemoryError: no memory that is written to and run is to be had (MemoryDenyWriteExecute=).
                log.info("nft is started for each change, since %s cannot be used: %s", _LIBRARY, error)
            else:
                weakref.finalize(self, context.close)
                self._in_process = context.run
        return self._in_process


class _Context:
    """One context of the library (nftables/libnftables.h). Raises ImportError, OSError, AttributeError or MemoryError
    where there is none."""

    def __init__(self) -> None:
        import ctypes  # noqa: PLC0415 - there may be none

        library: Any = ctypes.CDLL(_LIBRARY)
        # Where the library gets no socket it ends the process.
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER).close()
        library.nft_ctx_new.restype = ctypes.c_void_p
        for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error", *_BUFFERS):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        for name in _BUFFERS:
            getattr(library, name).restype = ctypes.c_void_p
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._library = library
        self._context = library.nft_ctx_new(0)
        if not self._context:
            raise OSError(f"{_LIBRARY} gives no context")
        if library.nft_ctx_buffer_output(self._context) or library.nft_ctx_buffer_error(self._context):
            self.close()
            raise OSError(f"{_LIBRARY} does not keep its messages to itself")

    def run(self, script: bytes) -> bool:
        """Whether a script was carried out."""
        done = not self._library.nft_run_cmd_from_buffer(self._context, script)
        for name in _BUFFERS:
            # Who asks for a message empties its place; the program says it anew.
            getattr(self._library, name)(self._context)
        return done

    def close(self) -> None:
        """Closes the context's socket."""
        self._library.nft_ctx_free(self._context)
