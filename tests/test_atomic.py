"""What killed processes leave, and what is not theirs."""

from pathlib import Path

from cifarlab.atomic import remove_torn


def test_only_what_a_run_writes_is_removed(tmp_path: Path) -> None:
    torn = [".record.json.17", ".last.ckpt.4", ".model.onnx.123"]
    others = [".notes.17", ".record.json.old", ".nfs.0001", "record.json.17"]
    for name in [*torn, *others]:
        (tmp_path / name).touch()
    (tmp_path / ".best.ckpt.1").mkdir()
    (tmp_path / ".config.yaml.2").symlink_to(tmp_path / ".notes.17")
    remove_torn(tmp_path, tmp_path / ".notes.17", tmp_path / "missing")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [*others, ".best.ckpt.1", ".config.yaml.2"]
    )
