"""What a cluster file says, and how a wrong one is answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoshard.catalog import load_chip
from autoshard.cluster_file import load_cluster, parse_topology
from autoshard.costmodels.cluster import Cluster
from autoshard.costmodels.errors import SpecError

WHOLE_GPU = """
chips = 64

[chip]
name = "mygpu"
kind = "gpu"
flops_per_s = { bf16 = 1e15, fp8 = 2e15 }
hbm_bytes = 128e9
hbm_bytes_per_s = 5e12
domain_chips = 16
domain_bytes_per_s = 4e11
scale_out_bytes_per_s = 5e10
pod_chips = 512
oversubscription = 2
"""

WHOLE_TPU = """
[chip]
name = "mytpu"
kind = "tpu"
flops_per_s = { bf16 = 1e15 }
hbm_bytes = 64_000_000_000
hbm_bytes_per_s = 5e12
pod_axes = [8, 8]
wrap = "full"
ici_bytes_per_s = 2e11
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    return tmp_path / "cluster.toml"


def test_a_preset_chip_and_a_size_are_enough(cluster: Path) -> None:
    cluster.write_text('chip = "H100"\nchips = 1024\n')
    assert load_cluster(cluster) == Cluster.build(load_chip("h100"), chips=1024)


def test_a_path_may_be_text(cluster: Path) -> None:
    cluster.write_text('chip = "h100"\n')
    assert load_cluster(str(cluster)).chip == load_chip("h100")


def test_a_name_is_kept(cluster: Path) -> None:
    cluster.write_text('name = "our pods"\nchip = "tpu-v5p"\npods = 2\n')
    built = load_cluster(cluster)
    assert (built.name, built.chips, built.pods) == ("our pods", 17920, 2)


@pytest.mark.parametrize("topology", ['"8x8x16"', "[8, 8, 16]"])
def test_a_topology_is_text_or_a_list(cluster: Path, topology: str) -> None:
    cluster.write_text(f'chip = "v5p"\ntopology = {topology}\n')
    built = load_cluster(cluster)
    assert (built.topology, built.chips) == ((8, 8, 16), 1024)


def test_a_chip_table_replaces_fields_of_its_base(cluster: Path) -> None:
    cluster.write_text(
        'chips = 16\n[chip]\nbase = "h100"\nhbm_bytes = 94e9\nscale_out_bytes_per_s = 2.5e10\n'
        "flops_per_s = { bf16 = 8e14 }\n"
    )
    chip, h100 = load_cluster(cluster).chip, load_chip("h100")
    assert (chip.hbm_bytes, chip.scale_out_bytes_per_s) == (94 * 10**9, 2.5e10)
    assert chip.flops_per_s == {**h100.flops_per_s, "bf16": 8e14}
    assert (chip.name, chip.domain_bytes_per_s) == ("h100", h100.domain_bytes_per_s)


def test_a_replaced_figure_is_sourced_to_the_file(cluster: Path) -> None:
    cluster.write_text(
        'chips = 8\n[chip]\nbase = "h100"\nhbm_bytes = 94e9\nhbm_bytes_per_s = 3.9e12\n'
        '[chip.sources]\nhbm_bytes_per_s = "our benchmark"\n'
    )
    sources, preset = load_cluster(cluster).chip.sources, load_chip("h100").sources
    assert sources["hbm_bytes"] == f"cluster file {cluster}"
    assert sources["hbm_bytes_per_s"] == "our benchmark"
    assert sources["domain_chips"] == preset["domain_chips"]


def test_dcn_from_a_file_makes_pods_of_a_chip_that_has_none_on_record(cluster: Path) -> None:
    cluster.write_text('pods = 2\n[chip]\nbase = "v3"\ndcn_bytes_per_s = 3e9\n')
    assert load_cluster(cluster).levels[-1].bytes_per_s == 3e9


def test_a_whole_gpu_can_be_described(cluster: Path) -> None:
    cluster.write_text(WHOLE_GPU)
    built = load_cluster(cluster)
    assert built.chip.name == "mygpu"
    assert built.chip.hbm_bytes == 128 * 10**9
    assert [level.chips for level in built.levels] == [16, 64]


def test_a_whole_tpu_can_be_described(cluster: Path) -> None:
    cluster.write_text(WHOLE_TPU)
    built = load_cluster(cluster)
    assert (built.chips, built.topology) == (64, (8, 8))
    assert all(axis.wraps for axis in built.torus)


H100_TABLE = 'chips = 8\n[chip]\nbase = "h100"\n'
V5P_TABLE = 'pods = 1\n[chip]\nbase = "v5p"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("", ["chip is missing", "h100"], id="empty"),
        pytest.param("chip = h100", ["not TOML", "line 1"], id="chip without quotes"),
        pytest.param("chips = 8\nchips = 9\n", ["not TOML"], id="a key twice"),
        pytest.param('chip = "h100"\nchps = 8', ["'chps'", "chips"], id="typo"),
        pytest.param('chip = "h100"\nTopology = "4x4"', ["'Topology'", "topology"], id="capital"),
        pytest.param('chip = "h100"\nzzz = 1', ["'zzz'", "known: chip"], id="alien key"),
        pytest.param('chip = "h1000"', ["unknown chip 'h1000'", "h100"], id="unknown chip"),
        pytest.param("chip = 5", ["chip must be text", "5"], id="chip is a number"),
        pytest.param('chip = ["h100"]', ["chip must be text"], id="chip is a list"),
        pytest.param('chip = ""', ["chip must be text"], id="chip is empty"),
        pytest.param('chip = "h100"\nname = 7', ["name must be text", "7"], id="name is a number"),
        pytest.param('chip = "h100"\nchips = "64"', ["chips", "whole number", "'64'"], id="quoted"),
        pytest.param('chip = "h100"\nchips = 8.5', ["chips", "8.5"], id="half a chip"),
        pytest.param('chip = "h100"\nchips = true', ["chips", "True"], id="true chips"),
        pytest.param('chip = "h100"\nchips = 0', ["chips", "at least 1"], id="no chips"),
        pytest.param('chip = "h100"\npods = -1', ["pods", "at least 1"], id="negative pods"),
        pytest.param('chip = "h100"\nchips = 9\npods = 2', ["9 chips", "2 equal"], id="odd pods"),
        pytest.param('chip = "h100"\ntopology = "4x4"', ["h100", "not a torus"], id="GPU torus"),
        pytest.param('chip = "v5p"\ntopology = 16', ["topology", "16x20x28", "16"], id="a number"),
        pytest.param('chip = "v5p"\ntopology = "16by20"', ["'16by20'"], id="topology in words"),
        pytest.param('chip = "v5p"\ntopology = []', ["topology", "0 axes"], id="no axes"),
        pytest.param('chip = "v5p"\ntopology = [4, "4"]', ["topology", "'4'"], id="mixed axes"),
        pytest.param('chip = "v5p"\ntopology = [4, true, 4]', ["topology", "True"], id="true axis"),
        pytest.param('chip = "v5p"\ntopology = [4, -4, 4]', ["topology", "-4"], id="negative axis"),
        pytest.param('chip = "v5p"\ntopology = [2, 2, 2, 2]', ["4 axes"], id="four axes"),
        pytest.param('chip = "v5p"\ntopology = "32x4x4"', ["32x4x4", "16x20x28"], id="too long"),
        pytest.param('chip = "v5e"\ntopology = "4x4x4"', ["v5e has 2 torus axes"], id="3D on 2D"),
        pytest.param('chip = "v5p"\nchips = 9\ntopology = "2x2"', ["9 chips", "2x2"], id="9 of 4"),
        pytest.param('chip = "v3"\npods = 2', ["v3", "DCN", "dcn_bytes_per_s"], id="no DCN"),
        pytest.param("[chip]", ["lacks name, kind, flops_per_s"], id="empty chip table"),
        pytest.param(
            H100_TABLE + "hbm_byts = 8e10", ["[chip] key 'hbm_byts'", "hbm_bytes"], id="chip typo"
        ),
        pytest.param('[chip]\nbase = "h10"', ["unknown chip 'h10'", "h100"], id="unknown base"),
        pytest.param("[chip]\nbase = 100", ["[chip] base must be text"], id="base is a number"),
        pytest.param(H100_TABLE + 'hbm_bytes = "80GB"', ["hbm_bytes", "'80GB'"], id="unit in text"),
        pytest.param(H100_TABLE + "hbm_bytes = 0.5", ["hbm_bytes", "0.5"], id="half a byte"),
        pytest.param(H100_TABLE + "hbm_bytes = inf", ["hbm_bytes", "inf"], id="endless memory"),
        pytest.param(H100_TABLE + "hbm_bytes_per_s = nan", ["hbm_bytes_per_s", "nan"], id="nan"),
        pytest.param(H100_TABLE + "domain_bytes_per_s = -1.0", ["domain_bytes_per_s"], id="rate"),
        pytest.param(H100_TABLE + "oversubscription = 0.5", ["oversubscription"], id="ratio"),
        pytest.param(H100_TABLE + "flops_per_s = 1e15", ["flops_per_s", "table"], id="bare peak"),
        pytest.param(
            H100_TABLE + "flops_per_s = { fp16 = 1e15 }", ["precision", "'fp16'"], id="fp16"
        ),
        pytest.param(
            H100_TABLE + 'flops_per_s = { bf16 = "fast" }',
            ["flops_per_s.bf16", "'fast'"],
            id="fast",
        ),
        pytest.param(H100_TABLE + 'kind = "npu"', ["kind", "tpu, gpu", "'npu'"], id="npu"),
        pytest.param(
            H100_TABLE + "ici_bytes_per_s = 1e11", ["ici_bytes_per_s", "gpu"], id="ICI on a GPU"
        ),
        pytest.param(
            V5P_TABLE + "oversubscription = 2", ["oversubscription", "tpu"], id="tree on a TPU"
        ),
        pytest.param(V5P_TABLE + 'pod_axes = "8x8x8"', ["pod_axes", "list"], id="axes in text"),
        pytest.param(V5P_TABLE + 'pod_axes = ["8", 8, 8]', ["pod_axes", "'8'"], id="quoted axis"),
        pytest.param(V5P_TABLE + "pod_axes = [2, 2, 2, 2]", ["pod_axes", "one to three"], id="4D"),
        pytest.param(V5P_TABLE + 'wrap = "sometimes"', ["wrap", "cubes", "'sometimes'"], id="wrap"),
        pytest.param(H100_TABLE + 'sources = "web"', ["sources", "table"], id="sources in text"),
        pytest.param(
            H100_TABLE + "sources = { hbm_bytes = 3 }", ["sources.hbm_bytes"], id="source a number"
        ),
        pytest.param(
            WHOLE_GPU.replace('name = "mygpu"', ""), ["lacks name", "base"], id="chip without name"
        ),
        pytest.param(
            WHOLE_GPU.replace("domain_chips = 16", ""), ["domain_chips"], id="GPU without a domain"
        ),
        pytest.param(
            WHOLE_TPU.replace("ici_bytes_per_s = 2e11", ""), ["ici_bytes_per_s"], id="no ICI"
        ),
        pytest.param(
            WHOLE_TPU.replace("pod_axes = [8, 8]", ""), ["pod_axes"], id="TPU without axes"
        ),
    ],
)
def test_a_bad_file_is_named_with_what_is_wrong(cluster: Path, text: str, says: list[str]) -> None:
    cluster.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_cluster(cluster)
    message = str(caught.value)
    assert [text for text in (str(cluster), *says) if text not in message] == []


def test_a_missing_file_is_named(cluster: Path) -> None:
    with pytest.raises(SpecError, match="no such file") as caught:
        load_cluster(cluster)
    assert str(cluster) in str(caught.value)


def test_a_folder_is_not_a_cluster_file(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        load_cluster(tmp_path)


def test_a_binary_file_is_not_toml(cluster: Path) -> None:
    cluster.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="not TOML"):
        load_cluster(cluster)


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("16x20x28", (16, 20, 28)),
        ("16X20X28", (16, 20, 28)),
        (" 8 x 16 ", (8, 16)),
        ("4", (4,)),
        ("2x2x1", (2, 2, 1)),
    ],
)
def test_a_topology_is_read(text: str, axes: tuple[int, ...]) -> None:
    assert parse_topology(text) == axes


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "16x", "x16", "16xx20", "axb", "16*20", "16,20", "16 20"),
        *("0x4", "-4x4", "4.0x4", "1e3x4", "4x4x4x4", "9" * 5000),
        "\N{FULLWIDTH DIGIT FOUR}x4",
    ],
)
def test_a_topology_that_is_not_one_says_what_would_be(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_topology(text)
    assert text in str(caught.value)
    assert "16x20x28" in str(caught.value)
