"""The scored network as a program that runs without this project: `model.pt2`, and `model.onnx` on request.

Both take uint8 images (N, 3, 32, 32), RGB, N from 1, and give probabilities, float32 (N, num_classes). Pixels
are scaled inside; all is computed on the CPU in float32. `meta.json` in it names the classes and says what
was trained and how well it did.
"""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from zipfile import ZipFile

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from cifarlab.atomic import atomically
from cifarlab.data.module import ImageData
from cifarlab.errors import RunFailed, UserError
from cifarlab.mistakes import refusal
from cifarlab.models.classifier import Classifier
from cifarlab.runs.record import finite
from cifarlab.untrusted import Refused, check_archive

log = logging.getLogger(__name__)

Kind = Literal["pt2", "onnx", "none"]
Network = Callable[[Tensor], Tensor]

META = "meta.json"
LARGEST_JSON = 20_000_000  # bytes of one in the archive; a network of 100 layers has 200,000
BATCHES = (1, 2, 7)  # sizes to try, for torch.export may take the one it saw as the only one
TOLERANCE = 1e-3  # of a probability; rounding makes 1e-6

# What an archive is read for. Its sample inputs are pickled and left behind, and whatever else it may hold.
KEPT = re.compile(
    r"archive_(format|version)|byteorder|\.data/version|models/model\.json|extra/meta\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
)
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
# What the strings in a program may be, by their key. Torch looks a target up in its modules, has sympy
# evaluate an expression, makes Python source of names, and some operators take the name of a file.
STRINGS = {
    # none that opens a file, or takes the bounds of memory on trust, as private ones may
    "target": r"torch\.ops\.aten\.(?!from_file|set_)([a-z]|_assert|_upsample)\w*\.\w+|_operator\.(add|mul)",
    "expr_str": r"((Add|Mul|Integer)\(|Symbol\('s\d+', positive=True, integer=True\)|[-\d(), ])*",
    "in_spec": r'(builtins\.(tuple|dict)|type|context|null|children_spec|[\d\[\]{}":, ])*',
    "path_name": r"(weight|tensor)_\d+",
    "as_string": "none|tanh|same|valid|zeros|constant|reflect|replicate|circular|nearest|bilinear|bicubic",
    "parameter_name": r"[\w.]*",
    "torch_version": r"[\w.+]*",
}
STRINGS |= {
    "out_spec": STRINGS["in_spec"],
    "as_strings": STRINGS["as_string"],
    **dict.fromkeys(("buffer_name", "tensor_constant_name", "fqn"), STRINGS["parameter_name"]),
}

DROPPED: dict[str, Any] = {"metadata": {}, "guards_code": []}  # explains the program; would be run as Python


class Probabilities(nn.Module):
    """A network that ends in probabilities."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).softmax(1)


def require(kind: Kind) -> None:
    """See to it that what `export=` asks for can be made here.

    Raises:
        UserError: naming the packages that are missing.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if kind == "onnx" and missing:
        raise UserError(
            f"export=onnx needs {' and '.join(missing)}: pip install -e '.[onnx]', or type export=pt2."
        )


def remove(folder: Path) -> None:
    """Remove a folder's final weights and exported networks: a run that goes on will have others."""
    for name in ("weights.safetensors", "model.pt2", "model.onnx"):
        (folder / name).unlink(missing_ok=True)


def write(
    folder: Path, model: Classifier, data: ImageData, config: dict[str, Any], record: dict[str, Any]
) -> float | None:
    """Write what the run's `export` asks for; the model keeps its mode, device and weights.

    Returns:
        The largest difference between a probability from the files and one from the model itself, in float32,
        on the first training images; None where nothing was written.

    Raises:
        RunFailed: the probabilities are NaN.
    """
    if config["export"] == "none":
        return None
    live = Probabilities(deepcopy(model)).eval().requires_grad_(False)
    assert data.set is not None
    tried = [data.set.train_images[:size] for size in BATCHES]
    expected = [live(batch.to(model.device)).cpu() for batch in tried]
    differences = []
    try:
        for network in networks(folder, config["export"], live, json.dumps(describe(model, config, record))):
            found = [network(batch) for batch in tried]
            differences += [(one - other).abs().max() for one, other in zip(found, expected, strict=True)]
    except Exception as error:  # a network of one's own may hold what torch cannot trace: the run is done
        if refusal(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        log.warning(f"The network could not be exported ({type(error).__name__}: {reason}).")
    if not differences:
        return None
    difference = torch.stack(differences).max().item()
    if difference != difference:
        remove(folder)
        raise RunFailed("The network gives probabilities that are NaN.")
    if difference > TOLERANCE:
        log.warning(f"The exported network's probabilities differ from the run's by up to {difference:.1e}.")
    return difference


def describe(model: Classifier, config: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """What `meta.json` holds."""
    return {
        "classes": model.classes,
        "input": "uint8 (N, 3, 32, 32), RGB",
        "output": "probabilities, float32 (N, classes)",
        "epochs": record["epochs"],
        "scores": finite({split: record[split] for split in ("val", "best_val", "test")}),
        "config": {**config, "resume": None},
    }


def networks(folder: Path, kind: str, live: Probabilities, meta: str) -> Iterator[Network]:
    """Write the files, and give each as it runs from there."""
    program = trace(live)
    yield write_program(folder / "model.pt2", program, meta)
    if kind == "onnx":
        yield write_onnx(folder / "model.onnx", program, meta)


def trace(network: Probabilities) -> ExportedProgram:
    """The network as a program for any number of images; moves the network to the CPU."""
    network.cpu().to(memory_format=torch.contiguous_format)
    example = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)  # of one, the size would be taken as fixed
    with silence():
        program = torch.export.export(network, (example,), dynamic_shapes=({0: Dim("N", min=1)},))
    program.example_inputs = None  # would be pickled
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    return program


def write_program(path: Path, program: ExportedProgram, meta: str) -> Network:
    """Write `model.pt2`, unless it cannot be read again."""
    with silence(), atomically(path) as file:
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={META: meta})
        file.write(content.getbuffer())
        file.flush()
        return load_exported(Path(file.name))[0]


def write_onnx(path: Path, program: ExportedProgram, meta: str) -> Network:
    """Write `model.onnx`, unless onnxruntime cannot run it."""
    import onnxruntime  # of the extra `onnx`

    with silence():
        onnx = torch.onnx.export(
            program,
            input_names=["images"],
            output_names=["probabilities"],
            external_data=False,
            verbose=False,
        )
    assert onnx is not None
    onnx.model.metadata_props[META] = meta
    content = onnx.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    with atomically(path) as file:
        file.write(content)
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def load_exported(path: Path) -> tuple[Network, dict[str, Any]]:
    """The network of a `model.pt2`, uint8 (N, 3, 32, 32) to probabilities, and its `meta.json`.

    A stranger's file is safe to load here, unlike with `torch.export.load` alone, which unpickles, loads
    compiled libraries and evaluates strings as Python. Here that gets a copy of the archive with nothing but
    plain tensors and a graph of torch's own operators (`aten`), every string in it checked: nothing in the
    file is run as code. What such a graph computes is its author's choice: it may be slow, large or wrong.

    Raises:
        UserError: the file is missing, damaged, of another kind, or holds more than that.
    """
    try:
        copy, meta = vetted(path)
        with silence():
            network = torch.export.load(copy).module()
        classes = meta["classes"]
        if not (isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes)):
            raise Refused("its meta.json does not name the classes")

        @torch.inference_mode()
        def probabilities(images: Tensor) -> Tensor:
            result: Tensor = network(images)
            return result

        made = probabilities(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
        if made.shape != (1, len(classes)) or made.dtype != torch.float32:
            raise Refused(f"it does not give {len(classes)} probabilities for an image")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; expected a run's model.pt2.") from None
    except Refused as error:
        raise UserError(f"{path} cannot be read as a run's model.pt2: {error}.") from None
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(f"{path} cannot be read as a run's model.pt2 ({type(error).__name__}).") from None
    return probabilities, meta


def vetted(path: Path) -> tuple[io.BytesIO, dict[str, Any]]:
    """A copy of the archive with what is known to be harmless and nothing else, and its `meta.json`.

    Raises:
        Refused: naming what is missing or not harmless.
    """
    check_archive(path)
    copy = io.BytesIO()
    with ZipFile(path) as archive, ZipFile(copy, "w") as target:
        members = {name.partition("/")[2]: name for name in archive.namelist()}
        for name in ("models/model.json", f"extra/{META}"):
            if name not in members:
                raise Refused(f"it has no {name}")
        for name in filter(KEPT.fullmatch, members):
            if name.endswith(".json") and archive.getinfo(members[name]).file_size > LARGEST_JSON:
                raise Refused(f"its {name} has more than {LARGEST_JSON:,} bytes")
        for name in filter(KEPT.fullmatch, members):
            content = archive.read(members[name])
            if name.endswith(".json") and name != f"extra/{META}":
                content = json.dumps(checked(json.loads(content))).encode()
            target.writestr(f"model/{name}", content)
        target.writestr(f"model/{SAMPLE_INPUTS}", b"")
        meta = json.loads(archive.read(members[f"extra/{META}"]))
    copy.seek(0)
    return copy, meta


def checked(node: Any, key: str = "") -> Any:
    """A part of a program's JSON, less what is dropped.

    Raises:
        Refused: a string in it might be more than a name.
    """
    if isinstance(node, dict):
        return {
            checked(name, "parameter_name"): DROPPED[name] if name in DROPPED else checked(part, name)
            for name, part in node.items()
        }
    if isinstance(node, list):
        return [checked(part, key) for part in node]
    if key == "use_pickle" and node is not False:
        raise Refused("its weights are pickled")
    if isinstance(node, str) and not re.fullmatch(STRINGS.get(key, r"\w*"), node):
        raise Refused(f"it holds {node[:80]!r} as {key or 'a value'}, which no run writes")
    return node


@contextmanager
def silence() -> Iterator[None]:
    """Keep what torch remarks on its own workings from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
