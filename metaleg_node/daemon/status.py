"""What the service last did, as a file that `status` reads without talking to the service."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, TypedDict, cast

from metaleg_node import files, terminal
from metaleg_node.terminal import fitted
from metaleg_node.text import counted, printable

_FILE = "status.json"
SILENT_SECONDS = 10.0
"""After so long without a sign of life, what was written last is no longer good; the loop gives one each second, but
cannot while the kernel or nft keeps it waiting."""


Time = Annotated[str, "date-time"]
"""RFC 3339, in UTC, with milliseconds; see `text.rfc3339`."""


class LastReconcile(TypedDict):
    """`time` is its end, `seconds` what it took, `result` "ok" or "failed"."""

    time: Time
    reason: str
    seconds: float
    changes: int
    result: Literal["ok", "failed"]


class ServiceStatus(TypedDict):
    """One Service (namespace/name) in one family; `reason` says why `state` is "unavailable", else it is empty."""

    service: str
    family: Literal[4, 6]
    source: str | None
    gateway: str | None
    pods: int
    state: Literal["active", "unavailable"]
    reason: str


class GatewayStatus(TypedDict):
    """A gateway node and its slot here; `mark` in hexadecimal, `next_hops` by family ("4", "6"), and `transport`, too:
    "direct" or "pod-network"."""

    node: str
    slot: int
    mark: str
    table: int
    next_hops: dict[str, str]
    transport: dict[str, str]


class ExitStatus(TypedDict):
    """The way out for egress with an address of a return path, and its slot here; as `GatewayStatus`."""

    path: str
    slot: int
    mark: str
    table: int
    next_hops: dict[str, str]


class SourceStatus(TypedDict):
    """Where the cluster's state comes from. `state` is "live", "stale" (the last known state, of the time `since`) or
    "waiting", `missing` is what has not been learned yet."""

    kind: Literal["state file", "Kubernetes API"]
    place: str
    state: str
    since: Time | None
    missing: list[str]


class NextHopStatus(TypedDict):
    """A next hop of a return path; `neighbour` is its state in the kernel's neighbour table. `slot` is what connections
    that came by it remember, null where they remember none; `requests` and `answers` count packets, null: not yet."""

    address: str
    interface: str
    weight: int
    neighbour: str
    slot: int | None
    requests: int | None
    answers: int | None


class PathStatus(TypedDict):
    """A return path. `slot`, `mark` (in hexadecimal) and `table` are null for one that marks nothing; `reason` says why
    it is not active, or what part of it does not work."""

    name: str
    kind: Literal["l2", "bgp"]
    state: Literal["active", "inactive"]
    reason: str
    slot: int | None
    mark: str | None
    table: int | None
    interface: str
    networks: list[str]
    next_hops: list[NextHopStatus]


class ExternalIpStatus(TypedDict):
    """One address of a Service (namespace/name) that counts for External-IP; `reason` says why it is left to
    kube-proxy while `state` is "inactive"."""

    service: str
    address: str
    cluster_ip: str | None
    state: Literal["active", "inactive"]
    reason: str


class NewPodsStatus(TypedDict):
    """The hold of new pods (egress.new_pods). `source` is what tells pods early: "CNI results", else "API"; `holding`
    says whether this node's own unknown pods are held now; `waiting` are the egress Pods here (namespace/name) that
    have no address yet, `unknown` the addresses whose Pod is not known."""

    source: Literal["CNI results", "API"]
    holding: bool
    known: int
    waiting: list[str]
    unknown: list[str]


class ProblemStatus(TypedDict):
    """One thing that is wrong, see `core.problems`."""

    code: str
    severity: str
    subject: str
    text: str


class StatusDocument(TypedDict):
    """The file's content, also what `status --json` prints while the service runs; `program` is the version of
    that. `repaired` counts, by kind, what was
    put back after others had changed it; `unlisted`, by reason, the unavailable Services that are not in `services`,
    of which there are only some for each reason."""

    version: Literal[1]
    running: Literal[True]
    program: str
    pid: int
    node: str
    started: Time
    config_file: str
    healthy: bool
    source: SourceStatus
    last_reconcile: LastReconcile | None
    services: list[ServiceStatus]
    unlisted: dict[str, int]
    gateways: list[GatewayStatus]
    exits: list[ExitStatus]
    paths: list[PathStatus]
    external_ips: list[ExternalIpStatus]
    new_pods: NewPodsStatus | None
    problems: list[ProblemStatus]
    repaired: dict[str, int]


class NothingTold(TypedDict):
    """What `status --json` prints when the service tells nothing: `reason` says why. `running` is whether there is a
    process of it nevertheless."""

    version: Literal[1]
    running: bool
    healthy: Literal[False]
    reason: str


class StatusError(Exception):
    """The status file cannot be written, read or understood; the message names it."""


def write(runtime_dir: Path, document: StatusDocument, services: Iterable[str] = ()) -> None:
    """Replaces the status file in one step, mode 0644; makes the directory when it is missing. `services` are more of
    the document's services, each in JSON already. Raises StatusError."""
    # In one piece and without indentation: only so the library's fast encoder is used, in a third of the time.
    rest = json.dumps({key: value for key, value in document.items() if key != "services"}).removesuffix("}")
    known = json.dumps(document["services"])[1:-1]
    content = f'{rest}, "services": [{", ".join(filter(None, (known, *services)))}]}}\n'.encode()
    try:
        files.replace(runtime_dir / _FILE, content, mode=0o644, durable=False)
    except OSError as error:
        raise StatusError(
            f"cannot write {runtime_dir / _FILE}: {error.strerror}; is the runtime directory writable and not full?"
        ) from error


def touch(runtime_dir: Path) -> None:
    """The sign of life of who wrote the file: what it says still holds. The time of the last change is set and nothing
    is written, so that it costs next to nothing, also on a full disk."""
    _date(runtime_dir, time.time())


def disown(runtime_dir: Path) -> None:
    """What the file says holds no longer, but nothing newer can be written."""
    _date(runtime_dir, 0.0)


def silence(runtime_dir: Path) -> float:
    """Seconds since the last sign of life; infinite when the file was disowned or is gone. A clock that was set back
    counts as well: a live service sets the time anew within a second."""
    try:
        changed = (runtime_dir / _FILE).stat().st_mtime
    except OSError:
        return math.inf
    return abs(time.time() - changed) if changed else math.inf


def _date(runtime_dir: Path, moment: float) -> None:
    # Where even this is refused the file grows old by itself.
    with suppress(OSError):
        os.utime(runtime_dir / _FILE, (moment, moment))


def read(runtime_dir: Path) -> StatusDocument | None:
    """What was written last, None when there is no file: the service does not run. Raises StatusError."""
    path = runtime_dir / _FILE
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StatusError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise StatusError(f"{path} is not valid JSON ({error}); the service rewrites it when it restarts") from error
    if not isinstance(document, dict) or not StatusDocument.__required_keys__ <= document.keys():
        raise StatusError(f"{path} was written by another version of metaleg-node: restart the service")
    return cast(StatusDocument, document)


def paths_table(paths: Iterable[PathStatus]) -> str:
    """Return paths for a terminal, without a final newline."""
    return fitted(map(_path_row, paths), _PATH_HEADER)


def render(document: StatusDocument, now: datetime) -> str:
    """The document as whole lines for a terminal; `now`, with its time zone, is what ages are counted from."""
    parts = [_summary(document, now)]
    if document["services"]:
        parts.append(fitted(map(_service_row, document["services"]), _SERVICE_HEADER))
    if document["unlisted"]:
        more = ", ".join(f"{reason} {number}" for reason, number in document["unlisted"].items())
        parts.append(f"More Services are unavailable: {more}")
    if document["gateways"]:
        parts.append(fitted(map(_gateway_row, document["gateways"]), _GATEWAY_HEADER))
    if document["exits"]:
        parts.append(fitted(map(_exit_row, document["exits"]), _EXIT_HEADER))
    if document["paths"]:
        parts.append(paths_table(document["paths"]))
    if document["external_ips"]:
        parts.append(fitted(map(_external_row, document["external_ips"]), _EXTERNAL_HEADER))
    if new := document["new_pods"]:
        parts.append(_new_pods(new))
    if document["problems"]:
        parts.append("\n".join(["Problems:", *map(_problem_line, document["problems"])]))
    return "\n\n".join(parts) + "\n"


_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
_SERVICE_HEADER = ("service", "family", "source", "gateway", "pods", "state", "reason")
_GATEWAY_HEADER = ("gateway", "slot", "mark", "table", "next hops")
_EXIT_HEADER = ("egress by path", *_GATEWAY_HEADER[1:])
_PATH_HEADER = ("return path", "state", "table", "networks", "next hops", "reason")
_EXTERNAL_HEADER = ("External-IP", "service", "ClusterIP", "state", "reason")
_SHOWN_NETWORKS = 3


def _summary(document: StatusDocument, now: datetime) -> str:
    repaired = ", ".join(f"{kind} {count}" for kind, count in sorted(document["repaired"].items()) if count)
    lines = [
        ("metaleg-node", f"{document['program']}, process {document['pid']}"),
        ("node", document["node"]),
        ("configuration", document["config_file"]),
        ("started", _when(document["started"], now)),
        ("healthy", "yes" if document["healthy"] else "no"),
        ("cluster state", _source(document["source"], now)),
        ("last reconcile", _reconcile(document["last_reconcile"], now)),
        ("repaired", repaired or "nothing"),
    ]
    return "\n".join(_named(name, printable(value)) for name, value in lines)


def _named(name: str, value: str) -> str:
    if value == terminal.paint(value):
        return terminal.wrapped(value, f"{name + ':':<16}", " " * 16)
    return f"{name + ':':<16}{terminal.paint(value)}"


def _source(source: SourceStatus, now: datetime) -> str:
    text = f"{source['kind']} ({source['place']}), {source['state']}"
    if source["since"]:
        text += f", of {_when(source['since'], now)}"
    return f"{text}, missing: {', '.join(source['missing'])}" if source["missing"] else text


def _reconcile(last: LastReconcile | None, now: datetime) -> str:
    if last is None:
        return "none yet"
    changes = counted(last["changes"], "change")
    return f"{_when(last['time'], now)}: {last['result']}, {changes} in {last['seconds']:.3f} s ({last['reason']})"


def _when(time: str, now: datetime) -> str:
    seconds = max(0, int((now - datetime.fromisoformat(time)).total_seconds()))
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{time} ({seconds // size} {unit} ago)"
    return f"{time} (now)"


def _service_row(s: ServiceStatus) -> tuple[object, ...]:
    source, gateway, reason = s["source"] or "-", s["gateway"] or "-", s["reason"] or "-"
    return s["service"], f"IPv{s['family']}", source, gateway, s["pods"], s["state"], reason


def _gateway_row(gateway: GatewayStatus) -> tuple[object, ...]:
    carried = {family for family, way in gateway["transport"].items() if way == "pod-network"}
    return gateway["node"], *_slot_cells(gateway, dict.fromkeys(carried, " (pod network)"))


def _exit_row(one: ExitStatus) -> tuple[object, ...]:
    return one["path"], *_slot_cells(one)


def _slot_cells(one: GatewayStatus | ExitStatus, remarks: Mapping[str, str] | None = None) -> tuple[object, ...]:
    hops = ", ".join(hop + (remarks or {}).get(family, "") for family, hop in sorted(one["next_hops"].items()))
    return one["slot"], one["mark"], one["table"], hops or "-"


def _path_row(path: PathStatus) -> tuple[object, ...]:
    networks = ", ".join(path["networks"][:_SHOWN_NETWORKS])
    rest = len(path["networks"]) - _SHOWN_NETWORKS
    hops = map(_next_hop, path["next_hops"])
    return (
        path["name"],
        path["state"],
        path["table"] or "-",
        (f"{networks} and {rest} more" if rest > 0 else networks) or "-",
        ", ".join(hops) or (f"dev {path['interface']}" if path["interface"] else "-"),
        path["reason"] or "-",
    )


def _next_hop(hop: NextHopStatus) -> str:
    text = f"{hop['address']} dev {hop['interface']} {hop['neighbour']}"
    return text if hop["requests"] is None else f"{text} (requests {hop['requests']}, answers {hop['answers']})"


def _external_row(one: ExternalIpStatus) -> tuple[object, ...]:
    return one["address"], one["service"], one["cluster_ip"] or "-", one["state"], one["reason"] or "-"


def _new_pods(new: NewPodsStatus) -> str:
    held = "held" if new["holding"] else "not held, since no egress pod starts here"
    known = f"{counted(new['known'], 'pod address')} without egress {'is' if new['known'] == 1 else 'are'} known"
    words = [f"New pods: unknown ones are {held}; {known} by {new['source']}"]
    words += [f"waiting for an address: {', '.join(new['waiting'])}"] if new["waiting"] else []
    words += [f"held: {', '.join(new['unknown'])}"] if new["unknown"] else []
    return "\n  ".join(words)


def _problem_line(problem: ProblemStatus) -> str:
    text = ": ".join(filter(None, (problem["subject"], problem["text"])))
    severity = f"{problem['severity']:<7}"
    lines = terminal.wrapped(f"{printable(text)} [{problem['code']}]", f"  {severity}  ", " " * 11)
    return lines.replace(severity, terminal.paint(severity), 1)
