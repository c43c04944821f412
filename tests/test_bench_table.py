"""The benchmark's table, its forms and its combinations of settings."""

from __future__ import annotations

import csv
import io
import json

import pytest
from layerlift.bench import machine, table
from layerlift.bench.measure import Rates, Test
from layerlift.runtime.cli import main


@pytest.fixture
def bench(tiny, capsys):
    def run(*flags, code=0):
        assert main(["bench", "-m", str(tiny("Q8_0")), "--gpu", "disable", "-t", "1", *flags]) == code
        return capsys.readouterr()

    return run


def test_the_markdown_table_has_the_columns_of_the_model_cards(bench):
    head, rule, *rows = bench("-p", "8", "-n", "3", "-r", "2").out.splitlines()
    columns = [cell.strip() for cell in head.split("|")[1:-1]]
    assert columns == ["cpu_info", "model_filename", "size", "threads", "test", "t/s"]  # -t was given
    assert rule.endswith("-: |")
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[-2] for row in cells] == ["pp8", "tg3"]
    assert all(float(row[-1]) > 0 for row in cells)
    assert {len(line) for line in (head, rule, *rows)} == {len(head)}


def test_json_has_mean_deviation_and_every_sample(bench):
    rows = json.loads(bench("-p", "8", "-n", "0", "-r", "3", "-o", "json").out)
    assert [row["test"] for row in rows] == ["pp8"]
    (row,) = rows
    assert len(row["samples_ts"]) == 3
    assert row["avg_ts"] == pytest.approx(sum(row["samples_ts"]) / 3)
    assert row["stddev_ts"] > 0
    assert (row["n_prompt"], row["n_gen"], row["threads"], row["type_k"]) == (8, 0, 1, "f16")
    assert row["model_size"] > 1_000_000


def test_every_combination_of_the_lists_has_its_rows(bench):
    flags = ("-p", "4,8", "-n", "0", "-pg", "4,2", "-r", "1", "-ub", "4,512", "-ctk", "f16,f32", "-ctv", "f16,f32")
    rows = [json.loads(line) for line in bench(*flags, "-o", "jsonl").out.splitlines()]
    assert len(rows) == 2 * 2 * 3  # ubatch, cache type, tests
    assert {(row["n_ubatch"], row["type_k"]) for row in rows} == {(4, "f16"), (4, "f32"), (512, "f16"), (512, "f32")}
    assert [row["test"] for row in rows[:3]] == ["pp4", "pp8", "pp4+tg2"]
    assert all(row["type_k"] == row["type_v"] for row in rows)


def test_settings_named_on_the_command_line_become_columns(bench):
    head = bench("-p", "4", "-n", "0", "-r", "1", "-b", "4").out.splitlines()[0]
    assert [c.strip() for c in head.split("|")[4:-3]] == ["threads", "n_batch"]


def test_csv_reads_back_as_the_same_values(bench):
    (row,) = csv.DictReader(io.StringIO(bench("-p", "4", "-n", "0", "-r", "1", "-o", "csv").out))
    assert row["test"] == "pp4"
    assert float(row["avg_ts"]) > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-p", "0", "-n", "0"), "nothing to measure"),
        (("-ctk", "f16", "-ctv", "f32"), "must be the same"),
        (("-p", "100000"), "more than the context"),
    ],
)
def test_what_cannot_be_measured_is_one_line_and_exit_2(bench, flags, message):
    err = bench(*flags, code=2).err
    assert message in err
    assert len(err.strip().splitlines()) <= 2


@pytest.mark.parametrize(
    "flags", [("-p", "x"), ("-pg", "512"), ("-pg", "0,4"), ("-ctk", "q8"), ("-r", "0"), ("-ngl", "-2")]
)
def test_a_wrong_value_is_a_usage_error(flags, capsys):
    assert main(["bench", *flags]) == 2
    assert flags[0] in capsys.readouterr().err


def test_the_gpu_columns_appear_only_where_layers_are_on_one():
    row = {
        "cpu_info": "c",
        "model_filename": "m",
        "model_size": 5 << 20,
        "ngl": 0,
        "device": "",
        "test": "pp1",
        "avg_ts": 1.0,
    }
    assert "ngl" not in table.render([row], "md")
    lines = table.render([row, row | {"ngl": 3, "device": "GPU"}], "md").splitlines()
    assert "ngl" in lines[0]
    assert "5.00 MiB" in lines[2]


def test_names_and_rates_of_tests():
    assert Test(512, 0).name == "pp512"
    assert Test(0, 16).name == "tg16"
    assert Test(512, 128).name == "pp512+tg128"
    rates = Rates((1.0, 2.0, 6.0))
    assert (rates.mean, rates.median) == (3.0, 2.0)
    assert rates.deviation == pytest.approx(2.6458, abs=1e-4)


def test_results_are_kept_with_machine_and_commit(tmp_path):
    facts = machine.describe_machine()
    assert facts.cores >= 1
    path = machine.save("try", [{"t": 1}], machine=facts, folder=tmp_path)
    kept = json.loads(path.read_text())
    assert kept["rows"] == [{"t": 1}]
    assert kept["machine"]["cpu"] == facts.cpu
    assert facts.commit.rstrip("+") in path.name
