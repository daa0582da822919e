"""ML-1xx: the kernel, and the programs that speak to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from metaleg_node.core import tried
from metaleg_node.doctor.diagnosis import Finding
from metaleg_node.doctor.facts import Facts, NotSeenError
from metaleg_node.kernel import other_filters
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.packet_filter import LABELS

_FULL = 0.8
_NOT_ALLOWED = "not permitted"
_LEGACY_AND_NFT = ("ip filter", "ip nat", "ip mangle", "ip raw")


def untried(facts: Facts) -> Iterator[Finding]:
    """101"""
    for sentence in tried.older(facts.versions):
        yield Finding(
            seen=sentence,
            follows="What this program asks of it may be missing, or be done in another way.",
            mend="install a newer one, or see whether `metaleg-node apply` and `metaleg-node status` are content",
        )


def nft(facts: Facts) -> Iterator[Finding]:
    """102"""
    try:
        assert facts.versions
    except KernelError as error:
        yield Finding(
            seen=str(error),
            follows="Nothing of this program can be put into the packet filter.",
            mend="apt install nftables",
        )


def listing(_: Facts) -> Iterator[Finding]:
    """103"""
    try:
        other_filters.chains()
    except KernelError as error:
        if _NOT_ALLOWED in str(error):
            raise
        yield Finding(
            seen=str(error),
            follows="nft cannot list what another program wrote with a newer one, as a proxy in a container may: our "
            "own table cannot be read back either.",
            mend="bring nft on this host to the version of that program: apt install -t bookworm-backports nftables",
        )


def expressions(facts: Facts) -> Iterator[Finding]:
    """104"""
    yield from _missing({name: words for name, words in facts.lacking.items() if name != LABELS})


def labels(facts: Facts) -> Iterator[Finding]:
    """106"""
    yield from _missing({name: words for name, words in facts.lacking.items() if name == LABELS})


def _missing(lacking: Mapping[str, str]) -> Iterator[Finding]:
    for name, words in lacking.items():
        yield Finding(
            seen=f"the kernel or nft refuses {name}: {words}",
            follows="Our table needs it and cannot be made.",
            mend="use a kernel that has it (Debian's do), or load its module: modprobe -a nft_ct nft_fib_inet nft_nat",
        )


def legacy(facts: Facts) -> Iterator[Finding]:
    """105"""
    old = other_filters.legacy_tables()
    new = sorted({chain.table for chain in facts.chains} & {*_LEGACY_AND_NFT})
    if old and new:
        yield Finding(
            seen=f"there are {', '.join(old)} beside those of iptables-nft ({', '.join(new)})",
            follows="A packet passes both, and either can drop it; whoever lists the rules sees one of the two only.",
            mend="see which program uses which (iptables-legacy-save, iptables-nft-save), make all use one: "
            "update-alternatives --config iptables; then reboot, or flush the other",
        )


def conntrack_room(facts: Facts) -> Iterator[Finding]:
    """107"""
    count, most = (facts.sysctl(f"net/netfilter/nf_conntrack_{name}") for name in ("count", "max"))
    if count is None or most is None:
        raise NotSeenError("conntrack is not in use here")
    mend = f"sysctl -w net.netfilter.nf_conntrack_max={2 * int(most)}; kube-proxy sets it, too (conntrack.maxPerCore)"
    if int(count) > _FULL * int(most):
        yield Finding(
            seen=f"conntrack has {count} entries of {most} (net.netfilter.nf_conntrack_max)",
            follows="When it is full, new connections of all pods fail, steered or not.",
            mend=mend,
        )
    elif lost := facts.growth("conntrack_losses"):
        yield Finding(
            seen=f"conntrack lost {lost} entries or packets while doctor looked (/proc/net/stat/nf_conntrack)",
            follows="Connections fail for want of room, or because ports collide.",
            mend=mend,
        )


def pick_up(facts: Facts) -> Iterator[Finding]:
    """108"""
    name = "net/netfilter/nf_conntrack_tcp_loose"
    if facts.sysctl(name) == "0":
        yield Finding(
            seen="net.netfilter.nf_conntrack_tcp_loose is 0",
            follows="The kernel takes up no TCP connection in its midst, so none survives when MetalLB moves its "
            "address to this node.",
            mend="sysctl -w net.netfilter.nf_conntrack_tcp_loose=1",
        )


def untracked(facts: Facts) -> Iterator[Finding]:
    """109"""
    for place in sorted(facts.others.untracked):
        yield Finding(
            seen=f"{place} keeps packets from conntrack (notrack)",
            follows="Such packets are neither steered nor translated: ours goes by connections.",
            mend="let that rule spare what pods send, or see that it does: nft list ruleset | grep notrack",
        )
