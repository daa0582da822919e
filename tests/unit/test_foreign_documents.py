"""Documents of a state file that nearly are what is read, or are other projects'."""

from __future__ import annotations

import pytest

from metaleg_node.core.objects.manifests import Parsed
from metaleg_node.sources.documents import DocumentError, read_yaml

CONFIGMAP = ("metallb-system", "config")


def read(text: str) -> Parsed:
    (found,) = read_yaml(text, CONFIGMAP)
    return found


@pytest.mark.parametrize("rest", ["", "spec: {}", "items: {a: b}", "items: [1, two]", "items: null"])
def test_another_projects_kind_that_ends_in_list_is_skipped(rest: str) -> None:
    found = read(f"apiVersion: example.org/v1\nkind: AllowList\nmetadata: {{name: a}}\n{rest}\n")
    assert found == Parsed()


def test_a_list_of_ours_that_was_cut_off_is_still_refused() -> None:
    with pytest.raises(DocumentError, match="kind ServiceList without a list of items"):
        read("apiVersion: v1\nkind: ServiceList\n")


@pytest.mark.parametrize("where", [("metallb-system", "metallb"), ("default", "config")])
def test_metallbs_configuration_under_another_name_is_told(where: tuple[str, str]) -> None:
    metadata = f"metadata: {{namespace: {where[0]}, name: {where[1]}}}"
    text = f"apiVersion: v1\nkind: ConfigMap\n{metadata}\ndata:\n  config: |\n    address-pools: []\n"
    (told,) = read(text).rejections
    assert told.harmless
    assert str(told.ref) == f"ConfigMap {'/'.join(where)}"
    assert "expected in metallb-system/config" in told.reason
    assert read(text.replace("address-pools", "colours")) == Parsed()


@pytest.mark.parametrize("wrapped", [True, False], ids=["ConfigMap", "bare"])
def test_a_configuration_with_bfd_profiles_alone_is_told(wrapped: bool) -> None:
    inner = "bfd-profiles: [{name: fast}]\n"
    metadata = "metadata: {namespace: metallb-system, name: config}"
    text = f"apiVersion: v1\nkind: ConfigMap\n{metadata}\ndata:\n  config: |\n    {inner}" if wrapped else inner
    (told,) = read(text).rejections
    assert told.harmless
    assert told.reason.startswith("has neither peers nor address-pools")


def test_an_odd_pool_name_costs_that_name_and_never_means_all_pools() -> None:
    head = "apiVersion: metallb.io/v1beta1\nkind: BGPAdvertisement\nmetadata: {namespace: m, name: a}\nspec:\n"
    found = read(f"{head}  ipAddressPools: [good, Odd_One]\n")
    (advertisement,) = found.objects
    assert advertisement.pools == ("good",)  # type: ignore[union-attr]
    assert "spec.ipAddressPools[1]" in found.rejections[0].reason
    nothing = read(f"{head}  ipAddressPools: [Odd_One]\n")
    assert nothing.objects == ()
    assert nothing.rejections
