"""Sysctls with a way back, on the real /proc/sys of a network namespace."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from unittest.mock import patch

import pytest

from metaleg_node import files
from metaleg_node.core.compare import diff
from metaleg_node.kernel import sysctl
from metaleg_node.kernel.errors import KernelError
from metaleg_node.kernel.sysctl import Sysctls
from metaleg_node.reconcile.machine import Machine
from metaleg_node.reconcile.reconciler import carry_out, cleanup_plan
from tests.netns import Netns

NAME = "net/ipv4/conf/v0/rp_filter"


@pytest.fixture
def sysctls(inside: Netns, tmp_path: Path) -> Sysctls:
    inside.run("sysctl", "-q", "-w", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.v0.rp_filter=1")
    return Sysctls(tmp_path)


def present(netns: Netns, name: str = NAME) -> str:
    return netns.run("sysctl", "-n", name).stdout.strip()


def put(sysctls: Sysctls, name: str, value: str) -> None:
    """Sets one value, where a refusal is an error."""
    raise_any(sysctls.set({name: value}))


def restore(sysctls: Sysctls, name: str) -> None:
    raise_any(sysctls.restore([name]))


def raise_any(results: Iterable[KernelError | None]) -> None:
    for error in results:
        if error:
            raise error


def test_values_are_read_and_what_does_not_exist_is_left_out(sysctls: Sysctls) -> None:
    assert sysctls.read([NAME, "net/ipv4/conf/gone0/rp_filter"]) == {NAME: "1"}


@pytest.mark.parametrize("name", ["net/ipv4/conf/v0.100/rp_filter", "net.ipv4.conf.v0/100.rp_filter"])
def test_an_interface_with_a_dot_in_its_name_works_in_both_notations(
    sysctls: Sysctls, inside: Netns, name: str
) -> None:
    inside.run("ip", "link", "set", "v1", "name", "v0.100")
    assert name in sysctls.read([name])
    put(sysctls, name, "2")
    assert present(inside, "net/ipv4/conf/v0.100/rp_filter") == "2"


@pytest.mark.parametrize("name", ["net/../kernel/hostname", "net..ipv4", "", "/etc/passwd", "net/ipv4//x"])
def test_a_name_that_leaves_proc_sys_is_refused(sysctls: Sysctls, name: str) -> None:
    with pytest.raises(KernelError, match="is not the name of a sysctl"):
        sysctls.read([name])


def test_the_value_before_the_first_change_comes_back(sysctls: Sysctls, inside: Netns, tmp_path: Path) -> None:
    put(sysctls, NAME, "0")
    put(sysctls, NAME, "2")
    assert present(inside) == "2"
    again = Sysctls(tmp_path)
    assert again.remembered() == {NAME: "1"}
    restore(again, NAME)
    assert present(inside) == "1"
    assert again.remembered() == {}


def test_a_value_that_is_right_already_is_neither_written_nor_remembered(sysctls: Sysctls, tmp_path: Path) -> None:
    put(sysctls, NAME, "1")
    assert sysctls.remembered() == {}
    assert list(tmp_path.iterdir()) == []


def test_an_operators_later_change_survives_the_restore(sysctls: Sysctls, inside: Netns) -> None:
    put(sysctls, NAME, "2")
    inside.run("sysctl", "-q", "-w", f"{NAME}=0")
    assert sysctls.remembered() == {}
    restore(sysctls, NAME)
    assert present(inside) == "0"


def test_an_operators_later_change_is_what_comes_back(sysctls: Sysctls, inside: Netns) -> None:
    put(sysctls, NAME, "2")
    inside.run("sysctl", "-q", "-w", f"{NAME}=0")
    put(sysctls, NAME, "2")
    assert sysctls.remembered() == {NAME: "0"}
    restore(sysctls, NAME)
    assert present(inside) == "0"


def set_but_be_killed(sysctls: Sysctls, name: str, value: str) -> None:
    """Gets as far as the record; the kernel is not written any more."""
    with patch.object(sysctl, "_write", side_effect=InterruptedError), pytest.raises(InterruptedError):
        put(sysctls, name, value)


def test_a_kill_before_the_first_write_is_harmless(sysctls: Sysctls, inside: Netns) -> None:
    set_but_be_killed(sysctls, NAME, "2")
    assert (present(inside), sysctls.remembered()) == ("1", {})
    put(sysctls, NAME, "2")
    assert sysctls.remembered() == {NAME: "1"}


def test_a_kill_before_the_second_write_forgets_nothing(sysctls: Sysctls, inside: Netns) -> None:
    put(sysctls, NAME, "0")
    set_but_be_killed(sysctls, NAME, "2")
    assert (present(inside), sysctls.remembered()) == ("0", {NAME: "1"})
    restore(sysctls, NAME)
    assert present(inside) == "1"


def test_after_a_second_change_the_first_is_no_longer_ours(sysctls: Sysctls, inside: Netns) -> None:
    put(sysctls, NAME, "0")
    put(sysctls, NAME, "2")
    inside.run("sysctl", "-q", "-w", f"{NAME}=0")
    assert sysctls.remembered() == {}


def test_the_record_is_for_root_alone_and_leaves_no_half_written_file(sysctls: Sysctls, tmp_path: Path) -> None:
    put(sysctls, NAME, "2")
    (file,) = tmp_path.iterdir()
    assert file.name == "sysctls.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_record_of_an_earlier_boot_is_ignored(sysctls: Sysctls, inside: Netns, tmp_path: Path) -> None:
    put(sysctls, NAME, "2")
    file = tmp_path / "sysctls.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "boot_id": "another"}))
    assert sysctls.remembered() == {}
    restore(sysctls, NAME)
    assert present(inside) == "2"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sysctls": {}}', "\x00"])
def test_a_damaged_record_is_reported_with_its_path(sysctls: Sysctls, tmp_path: Path, content: str) -> None:
    (tmp_path / "sysctls.json").write_text(content)
    with pytest.raises(KernelError, match=r"sysctls\.json is damaged"):
        sysctls.remembered()


def test_an_unwritable_state_directory_keeps_the_kernel_unchanged(inside: Netns) -> None:
    sysctls = Sysctls(Path("/proc/missing"))
    before = present(inside)
    with pytest.raises(KernelError, match=r"cannot write .*missing/sysctls\.json"):
        put(sysctls, NAME, "2")
    assert present(inside) == before


def test_a_missing_state_directory_is_made(inside: Netns, tmp_path: Path) -> None:
    sysctls = Sysctls(tmp_path / "lib" / "metaleg-node")
    put(sysctls, NAME, "2")
    assert present(inside) == "2"
    assert NAME in sysctls.remembered()


def test_restoring_for_an_interface_that_is_gone_only_forgets(sysctls: Sysctls, inside: Netns) -> None:
    put(sysctls, NAME, "2")
    inside.run("ip", "link", "delete", "v0")
    restore(sysctls, NAME)
    assert sysctls.remembered() == {}
    restore(sysctls, "net/ipv4/conf/never/rp_filter")


def make_anew(netns: Netns, value: str) -> None:
    netns.run("ip", "link", "delete", "v0")
    netns.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    netns.run("sysctl", "-q", "-w", f"{NAME}={value}")


def test_an_interface_that_is_made_anew_does_not_inherit(sysctls: Sysctls, inside: Netns) -> None:
    put(sysctls, NAME, "2")
    make_anew(inside, "2")
    assert sysctls.remembered() == {}
    restore(sysctls, NAME)
    assert present(inside) == "2"


def test_a_record_without_the_interface_counts_for_any(sysctls: Sysctls, inside: Netns, tmp_path: Path) -> None:
    put(sysctls, NAME, "2")
    file = tmp_path / "sysctls.json"
    document = json.loads(file.read_text())
    del document["interfaces"]
    file.write_text(json.dumps(document))
    assert sysctls.remembered() == {NAME: "1"}
    restore(sysctls, NAME)
    assert present(inside) == "1"


def test_short_lived_interfaces_leave_no_records(sysctls: Sysctls, inside: Netns, tmp_path: Path) -> None:
    put(sysctls, "net/ipv4/conf/all/rp_filter", "2")
    for number in range(5):
        inside.run("ip", "link", "add", f"pod{number}", "type", "veth", "peer", "name", "p")
        inside.run("sysctl", "-q", "-w", f"net.ipv4.conf.pod{number}.rp_filter=1")
        put(sysctls, f"net/ipv4/conf/pod{number}/rp_filter", "2")
        inside.run("ip", "link", "delete", f"pod{number}")
    assert recorded(tmp_path) == {"net/ipv4/conf/all/rp_filter", "net/ipv4/conf/pod4/rp_filter"}
    sysctls.prune()
    assert recorded(tmp_path) == {"net/ipv4/conf/all/rp_filter"}


def recorded(directory: Path) -> set[str]:
    return set(json.loads((directory / "sysctls.json").read_text())["sysctls"])


def test_pruning_writes_nothing_when_all_is_as_we_left_it(sysctls: Sysctls, tmp_path: Path) -> None:
    sysctls.prune()
    assert list(tmp_path.iterdir()) == []
    put(sysctls, NAME, "2")
    before = files.stamp(tmp_path / "sysctls.json")
    sysctls.prune()
    assert files.stamp(tmp_path / "sysctls.json") == before


def test_a_cleanup_forgets_interfaces_that_are_gone_and_a_plan_does_not_mention_them(
    sysctls: Sysctls, inside: Netns, tmp_path: Path
) -> None:
    put(sysctls, NAME, "2")
    inside.run("ip", "link", "delete", "v0")
    with Machine(tmp_path) as machine:
        plan = cleanup_plan(machine)
        assert plan.steps == ()
        assert recorded(tmp_path) == {NAME}
        assert carry_out(machine, plan.steps).ok
    assert recorded(tmp_path) == set()


def test_setting_for_an_interface_that_is_gone_says_so(sysctls: Sysctls) -> None:
    with pytest.raises(KernelError, match="is the interface gone"):
        put(sysctls, "net/ipv4/conf/gone0/rp_filter", "2")


def test_a_value_that_the_kernel_refuses_is_an_error_with_name_and_value(sysctls: Sysctls) -> None:
    with pytest.raises(KernelError, match=r"cannot set net/ipv4/conf/v0/rp_filter to nonsense: .*errno 22"):
        put(sysctls, NAME, "nonsense")


def test_a_read_only_proc_names_the_units_setting(inside: Netns, tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from metaleg_node.kernel.sysctl import Sysctls\n"
        "(error,) = Sysctls(pathlib.Path(sys.argv[1])).set({sys.argv[2]: '2'})\n"
        "sys.exit(str(error))"
    )
    script = 'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"'
    python = (sys.executable, "-c", program, str(tmp_path), NAME)
    done = inside.run("unshare", "-m", "bash", "-c", script, "bash", *python, check=False)
    assert "its systemd unit needs ReadWritePaths=/proc/sys/net" in done.stderr


def test_an_interface_that_is_renamed_keeps_its_record(sysctls: Sysctls, inside: Netns, tmp_path: Path) -> None:
    put(sysctls, NAME, "2")
    inside.run("ip", "link", "set", "v0", "name", "wan.7")
    renamed = "net/ipv4/conf/wan.7/rp_filter"
    assert sysctls.remembered() == {renamed: "1"}
    sysctls.prune()
    assert recorded(tmp_path) == {renamed}
    restore(sysctls, renamed)
    assert present(inside, renamed) == "1"
    assert sysctls.remembered() == {}


def test_interfaces_that_swap_their_names_swap_their_records(sysctls: Sysctls, inside: Netns) -> None:
    other = NAME.replace("v0", "v1")
    inside.run("sysctl", "-q", "-w", f"{other}=0")
    raise_any(sysctls.set({NAME: "2", other: "2"}))
    for before, after in (("v0", "x"), ("v1", "v0"), ("x", "v1")):
        inside.run("ip", "link", "set", before, "name", after)
    assert sysctls.remembered() == {NAME: "0", other: "1"}


def test_a_cleanup_puts_back_what_a_renamed_interface_had(sysctls: Sysctls, inside: Netns, tmp_path: Path) -> None:
    put(sysctls, NAME, "2")
    inside.run("ip", "link", "set", "v0", "name", "wan")
    with Machine(tmp_path) as machine:
        assert carry_out(machine, cleanup_plan(machine).steps).ok
    assert present(inside, "net/ipv4/conf/wan/rp_filter") == "1"


def test_of_several_the_ones_that_fail_keep_none_of_the_others_from_being_set(
    sysctls: Sysctls, inside: Netns, tmp_path: Path
) -> None:
    gone, other = NAME.replace("v0", "gone"), NAME.replace("v0", "v1")
    results = sysctls.set({gone: "2", NAME: "nonsense", other: "2"})
    assert [bool(error) for error in results] == [True, True, False]
    assert (present(inside), present(inside, other)) == ("1", "2")
    assert sysctls.remembered() == {other: "0"}
    assert recorded(tmp_path) >= {other}


def test_any_number_is_set_and_put_back_with_one_record_each(inside: Netns, tmp_path: Path) -> None:
    names = [f"net/ipv4/conf/pod{number}/rp_filter" for number in range(400)]
    links = "".join(f"link add pod{n} type veth peer name pod{n + 200}\n" for n in range(200))
    inside.run("sysctl", "-q", "-w", "net.ipv4.conf.default.rp_filter=1")
    inside.run("ip", "-batch", "-", stdin=links)
    set_all = tuple(diff.Step(operation=diff.SetSysctl(name=name, value="2")) for name in names)
    put_back = tuple(diff.Step(operation=diff.RestoreSysctl(name=name)) for name in names)
    with Machine(tmp_path) as machine, patch.object(files, "replace", wraps=files.replace) as written:
        assert carry_out(machine, set_all).ok
        assert (set(machine.sysctls(names).values()), written.call_count) == ({"2"}, 1)
        assert carry_out(machine, put_back).ok
        assert (set(machine.sysctls(names).values()), written.call_count) == ({"1"}, 2)


def test_rp_filter_of_all_interfaces_and_of_all(sysctls: Sysctls) -> None:
    values = sysctls.rp_filter()
    assert values["all"] == 0
    assert values["v0"] == 1
    assert set(values) == {"all", "default", "lo", "v0", "v1"}
