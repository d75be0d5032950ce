"""What runs all benchmarks: a table, or why there is none."""

from pathlib import Path

import pytest

from benchmarks import __main__ as driver
from benchmarks import gpu, paper_estimate, paper_scoring, results
from benchmarks.__main__ import Area
from benchmarks.results import Report


def test_the_last_table_of_what_was_printed_is_kept() -> None:
    assert driver.last_table("| a |\n| --- |\n\nwords\n| b |\n| --- |\n| 1 |\n\n{}") == "| b |\n| --- |\n| 1 |"
    assert driver.last_table("nothing") == ""


def test_a_benchmark_whose_peer_is_not_installed_says_so() -> None:
    done = driver.measured(Area("mining", "Negatives", (), ("numpy", "no_such_package")), ())
    assert "no_such_package is not installed" in done.markdown and "numpy" not in done.problem


def test_one_that_fails_says_how_it_ended() -> None:
    done = driver.measured(Area("no_such_benchmark", "Nothing", ()), ())
    assert done.table == "" and "exit code 1" in done.markdown


def test_one_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    code, _ = driver.run(["http.server", "0"], 0.5)  # serves until it is stopped
    assert code is None


def test_its_output_is_kept_and_its_table_found() -> None:
    code, printed = driver.run(["benchmarks.paper_estimate"], 60)
    assert code == 0 and driver.last_table(printed).startswith("|")


def test_what_is_computed_on_paper_is_what_the_results_say() -> None:
    kept = {name: results.kept(name).splitlines() for name in ("paper", "paper_scoring")}
    scoring = [*paper_scoring.rows(paper_scoring.Plan(50_000)), *paper_scoring.sizes()]
    for name, rows in (("paper", paper_estimate.rows()), ("paper_scoring", scoring)):
        assert [row for row in rows if f"| {' | '.join(row)} |" not in kept[name]] == [], f"benchmarks.{name}: run it"
    assert f"some {paper_estimate.DETECTOR_CORE_SECONDS} core-seconds" in results.kept("paper")


def test_an_unknown_name_is_wrong_usage() -> None:
    with pytest.raises(SystemExit) as ended:
        driver.main(["minning"])
    assert ended.value.code == 2


def test_every_area_is_a_benchmark() -> None:
    folder = Path(driver.__file__).parent
    assert all((folder / f"{area.name}.py").is_file() for area in driver.AREAS)


def test_what_no_gpu_has_measured_is_said() -> None:
    table = gpu.table({})
    assert table.count("not measured") == 8 and "gemma-3-12b nf4 train" in table


def test_a_report_s_rows_fill_its_columns_and_its_figures_are_rounded() -> None:
    report = Report(columns=4, digits=2)
    report.add("what", "value", ratio=1.2345)
    assert report.rows == [("what", "value", "", "")] and report.figures == {"ratio": 1.23}
