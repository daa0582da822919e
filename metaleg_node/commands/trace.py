"""`trace`: what a pod's next packets meet on this node."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from metaleg_node import terminal
from metaleg_node.commands.command import Command, Failure, UsageError, configured
from metaleg_node.commands.explain import read_state
from metaleg_node.core.explain.following import Followed, Outcome, Traced
from metaleg_node.core.explain.targets import TargetError, asked, pod_addresses
from metaleg_node.core.model import Address
from metaleg_node.core.networks import parse_address
from metaleg_node.reconcile.machine import Machine

_SECONDS = 30.0


def _run(arguments: argparse.Namespace) -> int:
    try:
        to = asked(arguments.pod, arguments.to)
    except TargetError as error:
        raise UsageError(str(error)) from error
    try:
        addresses = _addresses(arguments)
    except TargetError as error:
        raise Failure(str(error)) from error
    if to:
        addresses = tuple(one for one in addresses if one.version == to.address.version)
    if not addresses:
        raise Failure(f"{arguments.pod} has no address of the family of {arguments.to}")
    options, config = configured(arguments)
    last: Followed | None = None
    with (
        Machine(options.state_dir, config.firewall.backend) as machine,
        machine.trace(Traced(addresses=addresses, to=to)) as tracer,
    ):
        print(f"waiting {arguments.seconds:g} s for what {', '.join(map(str, addresses))} sends", flush=True)
        try:
            for last in tracer.follow(arguments.seconds):
                print("\n".join(_lines(last)), flush=True)
        except KeyboardInterrupt:
            print()
    if last is None:
        print("nothing came: does the pod run on this node, and did it begin a connection?")
    return 0 if last and last.outcome in (Outcome.LEFT, Outcome.DELIVERED) else 1


def _addresses(arguments: argparse.Namespace) -> tuple[Address, ...]:
    """An address is taken as it is, so that nothing else has to work."""
    if "/" not in arguments.pod:
        return (parse_address(arguments.pod),)
    return pod_addresses(arguments.pod, read_state(*configured(arguments))[0])


def _lines(followed: Followed) -> Iterator[str]:
    yield terminal.bold(terminal.wrapped(followed.packet))
    for meeting in followed.meetings:
        yield terminal.wrapped(meeting.text, "  ", "    ")
        yield terminal.wrapped(f"in {meeting.place}", "      ", "      ")
    yield terminal.wrapped(followed.text, "  => ", "     ")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600")
    return value


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pod", metavar="POD", help="a pod's address, or namespace/pod")
    parser.add_argument(
        "--to", metavar="ADDRESS", help="only what goes there, or ADDRESS:PORT/PROTOCOL; default: all it begins"
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=_SECONDS,
        metavar="N",
        help=f"how long to wait and look; default: {_SECONDS:g}",
    )


COMMAND = Command(
    name="trace",
    run=_run,
    summary="what a pod's next packets meet on this node",
    description="Follows the packets that a pod sends next through this node's packet filters, live: what our chains "
    "decide in words, others' chains by name, and with which source they leave. At most ten packets a second are "
    "followed, of TCP only those that begin a connection. It makes a table of its own, which is gone with it.",
    statuses="0 when the last packet left, 1 when it was dropped, or when nothing came",
    options=_options,
)
