"""`python report.py` as a user meets it: what it prints and writes, its exit codes, what it refuses."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from synthetic import write_lattice, write_run

from cifarlab.report.command import main
from cifarlab.report.summary import build
from cifarlab.report.tables import comma_separated, latex, markdown, markdown_table, terminal

ROOT = Path(__file__).parents[2]
EVIL = "<script>alert(1)</script>|*x*_$&\\%{"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two configurations of two seeds, one failed run and one still at it."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs")
    for seed in range(2):
        write_run(folder / f"none{seed}", 0.70 + seed / 100, 0.71, seed=seed, epochs=3)
        write_run(folder / f"flip{seed}", 0.75 + seed / 50, 0.77, seed=seed, reg=("flip",), epochs=3)
    failed = {"status": "failed", "error": "The loss became NaN in epoch 3."}
    write_run(folder / "failed", None, record=failed, seed=2)
    write_run(folder / "stopped", None, record={"status": "interrupted"}, seed=0, epochs=2)
    return folder


def test_without_torch(tmp_path: Path) -> None:
    runs = write_lattice(tmp_path / "runs", seeds=2, epochs=2)
    outs = [f"out={tmp_path / 'report'}{form}" for form in (".md", ".csv", ".html")]
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['report.py', {str(runs)!r}, 'baseline=reg=none', *{outs!r}]\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "assert not {'torch', 'lightning', 'pytorch_lightning', 'hydra'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "The curves are those of the first 8 of 16 rows.\n"
    made = {path.name: path.stat().st_size for path in tmp_path.iterdir() if path.is_file()}
    pictures = {"report_curves.png", "report_time.png", "report_regularizers.png"}
    assert made.keys() == {"report.md", "report.csv", "report.html"} | pictures
    assert all(made.values())


def test_the_table_for_a_pipe(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs), "baseline=reg=none"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == "4 runs of 2 configurations"
    # sd of 0.75 and 0.77: 0.0141; t of 1 degree of freedom 12.7062
    assert (
        "reg=flip       2  76.00 ± 1.41  63.29 to 88.71  77.00 ± 0.00   5.8 min       3     550,570" in lines
    )
    assert lines[6].startswith("reg=none       2  70.50 ± 0.71  64.15 to 76.85  71.00 ± 0.00")
    assert any(line.startswith("reg=flip: +5.50 ± 0.71 points (n = 2, 95 % interval -0.85") for line in lines)
    assert "failed       runs/failed   The loss became NaN in epoch 3." in lines
    assert "interrupted  runs/stopped  2 epochs done (done since: runs/none0)" in lines


def test_a_terminal_gets_what_fits(runs: Path) -> None:
    for width in (60, 80, 100, 140):
        text = terminal(build([runs]), width)
        table = text.partition("\nconfiguration ")[2].partition("\n\n")[0]
        assert max(map(len, table.splitlines())) <= width
        assert ("no room here for" in table) == (width < 100)
        assert "76.00 ± 1.41" in table


def test_markdown(runs: Path) -> None:
    report = build([runs], baseline="reg=none")
    assert markdown_table(report) == (
        "| configuration | n | test % | 95 % interval | validation % | training | epochs | parameters |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| reg=flip | 2 | 76.00 ± 1.41 | 63.29 to 88.71 | 77.00 ± 0.00 | 5.8 min | 3 | 550,570 |\n"
        "| reg=none | 2 | 70.50 ± 0.71 | 64.15 to 76.85 | 71.00 ± 0.00 | 5.8 min | 3 | 550,570 |\n"
    )
    text = markdown(report)
    assert markdown_table(report) in text
    assert "| failed | runs/failed | The loss became NaN in epoch 3. |" in text


def test_csv(runs: Path) -> None:
    lines = list(csv.DictReader(comma_separated(build([runs], baseline="reg=none")).splitlines()))
    assert [line["status"] for line in lines] == ["done", "done", "failed", "interrupted"]
    flip = lines[0]
    assert float(flip["test_accuracy_mean"]) == pytest.approx(0.76)
    assert float(flip["difference_mean"]) == pytest.approx(0.055)
    assert (flip["comparison"], flip["baseline"], flip["runs"]) == ("paired", "reg=none", "2")
    assert lines[2]["error"] == "The loss became NaN in epoch 3."


def test_text_from_records_is_only_text(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 0.7, record={"choices.model": EVIL})
    write_run(tmp_path / "b", 0.7, changes={"model.blocks": 2})
    report = build([tmp_path])
    name = r"model=&lt;script&gt;alert(1)&lt;/script&gt;\|\*x\*\_\$&amp;\\%{"
    assert f"| {name} |" in markdown_table(report)
    name = r"model=\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{}|*x*\_\$\&"
    assert name + r"\textbackslash{}\%\{ &" in latex(report)


def test_marks_and_dashes(tmp_path: Path) -> None:
    record = {"data.validation": "test"}
    write_run(tmp_path / "a", 0.7, changes={"data.validation": "test"}, record=record)
    report = build([tmp_path])
    assert "| model=vgg3 reg=none † | 1 | 70.00 ± – | – | 70.00 ± – |" in markdown_table(report)  # noqa: RUF001
    assert any(note.startswith("† Validated on the test images") for note in report.notes)


def test_order(tmp_path: Path) -> None:
    for number, (test, val, seconds) in enumerate(((0.7, 0.9, 30.0), (0.8, 0.6, 20.0), (None, 0.8, 10.0))):
        changes = {"optimizer.lr": number + 1.0}
        write_run(tmp_path / str(number), test, val, changes=changes, seconds=seconds)

    def order(**options: str) -> list[str]:
        return [row.name[-1] for row in build([tmp_path], **options).rows]

    assert order() == ["2", "1", "3"]
    assert order(metric="val") == order(sort="val") == ["1", "3", "2"]
    assert order(sort="time") == ["3", "2", "1"]
    assert order(sort="name") == ["1", "2", "3"]


def write_folds(folder: Path, val: dict[int, list[float]], **options: Any) -> None:
    """Folds of five by seed, the last epoch's accuracy; test accuracy and best epoch are others."""
    for seed, scores in val.items():
        for fold, score in enumerate(scores):
            changes = {"data.validation": "fold", "data.fold": fold, "test_weights": "best"}
            name = f"{options.get('reg')}{seed}{fold}"
            record = {"best_val.accuracy": 0.99}
            write_run(folder / name, 0.6, score, seed=seed, changes=changes, record=record, **options)


def test_folds_show_the_cross_validated_accuracy(tmp_path: Path) -> None:
    write_folds(tmp_path, {0: [0.90, 0.92, 0.88, 0.91, 0.89]})
    report = build([tmp_path])
    assert (report.metric, report.metric_name) == ("val", "cross-validated accuracy")
    assert report.rows[0].val is not None
    assert report.rows[0].val.mean == pytest.approx(0.90)
    assert build([tmp_path], metric="test").metric_name == "test accuracy"


def test_noise_of_the_folds_is_no_difference_whatever_the_seeds(tmp_path: Path) -> None:
    base, gain = [0.90, 0.92, 0.88, 0.91, 0.89], [0.02, -0.015, 0.025, 0.01, -0.01]
    moved = [0.0004, -0.0003, 0.0001]  # by the seed
    write_folds(tmp_path, {seed: base for seed in range(3)})
    with_dropout = {
        seed: [score + more + by for score, more in zip(base, gain, strict=True)]
        for seed, by in enumerate(moved)
    }
    write_folds(tmp_path, with_dropout, reg=("dropout",))
    (found,) = build([tmp_path], baseline="reg=none").comparisons
    # sd of the gains 0.0178 -> t = 0.00607 / (0.0178 sqrt(1/5 + 1/4)) = 0.51 with 4 degrees of freedom
    assert (found.difference.n, found.difference.mean) == (5, pytest.approx(0.006 + 0.0002 / 3))
    assert found.difference.p == pytest.approx(0.64, abs=0.01)
    assert found.verdict == "no more than chance would give"


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "none0" / "record.json").write_text('{"sch')
    (runs / "flip1" / "metrics.csv").unlink()
    assert main([str(runs), "out=report.html"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("3 runs of 2 configurations")
    assert err.splitlines() == [
        "runs/none0/record.json cannot be read: it is torn, or no JSON: left out.",
        "runs/flip1/metrics.csv cannot be read (No such file or directory): the curve is left out.",
    ]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "report.py needs a folder with runs, such as logs/runs; --help shows what there is."),
        (["runs", "basline=reg=none"], "report.py has no option 'basline'; did you mean 'baseline'?"),
        (["rums"], "rums: there is no such folder; expected one with runs, such as logs/runs."),
        (["runs/none0/record.json"], "there is no such folder; expected one with runs"),
        (["runs", "out=report.pdf"], "expected a file name that ends in .md, .csv, .tex, .html."),
        (["runs", "out=none/report.md"], "there is no folder none; make it first."),
        (["runs", "sort=speed"], "sort has no 'speed'; expected one of test, val, time, parameters, name."),
        (["runs", "metric=tset"], "metric has no 'tset'; did you mean 'test'?"),
        (["runs", "-v"], "-v: report.py takes folders and key=value; --help shows what there is."),
        (["empty"], "No run that can be read lies in empty; expected folders such as logs/runs."),
    ],
)
def test_mistakes(
    runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    Path("empty").mkdir()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_a_folder_may_be_called_like_an_option(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.rename("_data=digits,model=vgg2")
    assert main(["_data=digits,model=vgg2"]) == 0
    assert capsys.readouterr().out.startswith("4 runs")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "baseline=reg=none" in capsys.readouterr().out
