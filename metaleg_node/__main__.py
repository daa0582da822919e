"""Where the program begins, as `metaleg-node` and as `python -m metaleg_node`."""

import signal
import sys


def main() -> int:
    """Runs the command that was given and returns its exit status."""
    if "run" in sys.argv[1:]:
        # Until the service has a handler for it, a request to reload would end it. Nothing is lost: the configuration
        # is read after this, and a change of it from then on is noticed.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # All the rest takes a while to load.
    from metaleg_node import cli  # noqa: PLC0415

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
