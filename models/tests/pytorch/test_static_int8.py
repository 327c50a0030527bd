"""Integer products with constant scales: what is rewritten, how far it is off, and that batch mates change nothing."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from muse_models.export.bundle import write_bundle
from muse_models.export.graphs import decoder_graph
from muse_models.export.onnx_file import export
from muse_models.export.ranges import Histogram, between
from muse_models.export.static_graph import StaticGraph
from muse_models.export.static_int8 import Observer, main
from muse_models.export.tiny import WORDS, tiny_parts
from muse_models.reference.bundle import Bundle
from muse_models.reference.pipeline import Request, generate
from muse_models.tokenizer.model import ImageTokenizer

STAGES = ("base", "superres")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """The tiny bundle (int8 weights in base, f16 in super-resolution), and the same with integer products."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("static")
    write_bundle(tiny_parts(), folder / "exact")
    captions = folder / "captions.txt"
    captions.write_text("\n".join(f"a {word} on the {other}" for word, other in zip(WORDS, reversed(WORDS))) + "\n")
    arguments = ["--bundle", folder / "exact", "--out", folder / "static", "--captions", captions]
    assert main([str(argument) for argument in arguments]) == 0
    return folder / "exact", folder / "static"


def batch(bundle, stage_name, rows):
    """Tokens and conditioning for a step graph: `rows` prompts, each with another share of masked positions."""
    stage = bundle.stages[stage_name]
    random = np.random.default_rng(7)
    config = stage.manifest
    low = bundle.manifest["base"]["codebook_size"]
    inputs = []
    for row in range(rows):
        text, mask = bundle.embed(f"a {WORDS[row + 7]} {WORDS[-row - 1]}")
        low_tokens = random.integers(0, low, bundle.stages["base"].positions) if stage_name == "superres" else None
        tokens = random.integers(0, config["codebook_size"], (1, stage.positions))
        tokens[random.random(tokens.shape) < (row + 1) / rows] = config["mask_id"]
        inputs.append({"tokens": tokens, **stage.conditioning(text, mask, low_tokens)})
    return {name: np.concatenate([row[name] for row in inputs]) for name in inputs[0]}


def logits(step, inputs, rows):
    """Logits [R, S, V] of those rows of `inputs`, everywhere."""
    chosen = {name: values[rows] for name, values in inputs.items()}
    count, positions = chosen["tokens"].shape
    chosen |= {"grids": np.arange(count), "positions": np.arange(count * positions)}
    (found,) = step.run(["logits"], chosen)
    return found.reshape(count, positions, -1)


def kernels(file, folder, run):
    """The operators that ONNX Runtime's CPU provider runs for the graph in `file`, one for each node."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    running = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    run(running)
    with open(running.end_profiling()) as profile:
        return [event["args"]["op_name"] for event in json.load(profile) if event["name"].endswith("_kernel_time")]


@pytest.mark.parametrize("stage", STAGES)
def test_every_product_with_a_matrix_runs_on_an_integer_kernel(bundles, tmp_path, stage):
    bundle = Bundle(bundles[1])
    manifest, inputs = bundle.stages[stage].manifest, batch(bundle, stage, 2)
    step = bundles[1] / manifest["step"]
    found = kernels(step, tmp_path, lambda running: logits(running, inputs, [0, 1]))
    # Those of the table of tokens with a part of `merge` are constant, and folded.
    products = sum(
        node.op_type == "MatMul" and node.input[0] != "model.tokens.weight" for node in onnx.load(step).graph.node
    )
    assert products >= 12
    assert found.count("MatMulIntegerToFloat") == products
    assert "MatMul" not in found and "DequantizeLinear" not in found

    text, mask = bundle.embed(f"a {WORDS[0]}")
    given = {"text": text, "text_mask": mask}
    if stage == "superres":
        given["low_tokens"] = np.zeros((1, bundle.stages["base"].positions), np.int64)
    found = kernels(bundles[1] / manifest["condition"], tmp_path, lambda running: running.run(None, given))
    assert "MatMulIntegerToFloat" in found and "MatMul" not in found and "DequantizeLinear" not in found


@pytest.fixture(scope="module", params=["f32", "f16", "int8"])
def decoders(request, tmp_path_factory):
    """An image decoder of 8 and 16 channels as it is exported, in each form of storage, and the same with integer products."""
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(32, 4, 5, (8, 16), (1, 1), (2, 2)).requires_grad_(False).eval()
    for block in tokenizer.decoder.modules():
        if hasattr(block, "second"):
            torch.nn.init.normal_(block.second.weight, std=0.1)
    folder = tmp_path_factory.mktemp("decoders")
    export(decoder_graph(tokenizer, 4**5, 16), folder / "exact.onnx", request.param)
    graph = StaticGraph(onnx.load(folder / "exact.onnx"))
    observer = Observer(graph, 1)
    for seed in range(8):
        observer.run(["image"], {"tokens": grids(seed, 1)})
    onnx.save(graph.quantised(observer.ranges()), folder / "static.onnx")
    onnx.checker.check_model(str(folder / "static.onnx"))
    return folder


def grids(seed, rows):
    return np.random.default_rng(seed).integers(0, 4**5, (rows, 16))


def decoded(file, tokens):
    (image,) = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(["image"], {"tokens": tokens})
    return image


def test_convolutions_of_many_channels_run_on_an_integer_kernel_but_for_the_last(decoders, tmp_path):
    found = kernels(decoders / "static.onnx", tmp_path, lambda running: running.run(None, {"tokens": grids(9, 1)}))
    # Four blocks of two, and the one before the pixels are spread.
    assert found.count("QLinearConv") == 9
    # The first reads five channels, five norms take means, and the last makes the picture.
    assert found.count("Conv") == 7


def test_pictures_of_the_same_tokens_are_near_and_do_not_depend_on_their_company(decoders):
    tokens = grids(10, 5)
    here, there = (decoded(decoders / file, tokens) for file in ("exact.onnx", "static.onnx"))
    off = np.sqrt(np.mean(np.square(there - here)))
    assert 1e-4 < off < 0.02
    for row in range(5):
        np.testing.assert_array_equal(decoded(decoders / "static.onnx", tokens[row : row + 1])[0], there[row])


@pytest.mark.parametrize("stage", STAGES)
def test_logits_are_near_and_no_more_than_near(bundles, stage):
    exact, static = (Bundle(folder) for folder in bundles)
    inputs = batch(exact, stage, 8)
    here, there = (logits(bundle.stages[stage].step, inputs, list(range(8))) for bundle in (exact, static))
    off = np.sqrt(np.mean(np.square(there - here))) / here.std()
    # Not a copy of the graph, and rounding to eight bits alone.
    assert 1e-4 < off < 0.05


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_is_the_same_alone_and_among_others(bundles, stage, threads):
    bundle = Bundle(bundles[1], threads)
    step, inputs = bundle.stages[stage].step, batch(bundle, stage, 8)
    alone = [logits(step, inputs, [row]) for row in range(8)]
    for rows in ([0, 1, 2], [7, 3], list(range(8)), [5, 5, 0, 2, 1]):
        together = logits(step, inputs, rows)
        for place, row in enumerate(rows):
            np.testing.assert_array_equal(together[place], alone[row][0], err_msg=f"row {row} of {rows}")


def test_the_bundle_is_whole_and_says_that_it_is_another(bundles):
    exact, static = (Bundle(folder) for folder in bundles)
    assert static.manifest["model"]["version"] == exact.manifest["model"]["version"] + "-int8-static"
    changed = {
        name for name, entry in static.manifest["files"].items() if entry != exact.manifest["files"][name]
    }
    # The decoders of this bundle have no convolutions.
    assert changed == {f"{stage}_{part}.onnx" for stage in STAGES for part in ("condition", "step")}
    same = {key: value for key, value in static.manifest.items() if key not in ("files", "model")}
    assert same == {key: value for key, value in exact.manifest.items() if key not in ("files", "model")}
    assert generate(static, Request("a red circle", seed=1)).shape == (3, 32, 48)


def test_weights_that_are_stored_in_eight_bits_stay_what_they_are(bundles):
    def stored(folder, form):
        tensors = onnx.load(folder / "base_step.onnx").graph.initializer
        return {
            tensor.name.removesuffix(form): onnx.numpy_helper.to_array(tensor)
            for tensor in tensors if tensor.name.endswith(form)
        }

    before, after = stored(bundles[0], ".int8"), stored(bundles[1], ".static")
    assert after
    for name, values in after.items():
        np.testing.assert_array_equal(values, before[name])


def test_a_bundle_is_not_written_over_itself(bundles, capsys):
    assert main(["--bundle", str(bundles[0]), "--out", str(bundles[0])]) == 1
    assert "is the bundle that is read" in capsys.readouterr().err


def test_a_range_gives_up_rare_values_for_finer_steps():
    random = np.random.default_rng(3)
    values = random.normal(size=1_000_000).astype(np.float32)
    values[0] = 40
    histogram = Histogram()
    for part in np.split(values, 10):
        histogram.add(part)
    chosen = histogram.range()
    assert chosen.rounded(np.zeros(1, np.float32))[0] == 0

    def error(candidate):
        return float(np.square(candidate.rounded(values) - values).sum(dtype=np.float64))

    low, high = float(values.min()), float(values.max())
    tried = [error(between(low, high * share)) for share in np.linspace(0.1, 1, 40)]
    assert error(chosen) < 1.02 * min(tried)
    assert error(chosen) < 0.6 * tried[-1]


def test_a_range_holds_zero_and_refuses_what_is_not_finite():
    histogram = Histogram()
    histogram.add(np.array([5.0, 6.0], np.float32))
    chosen = histogram.range()
    assert chosen.zero_point == 0 and abs(chosen.rounded(np.array([5.5], np.float32))[0] - 5.5) < 0.03
    with pytest.raises(ValueError, match="not finite"):
        histogram.add(np.array([np.inf], np.float32))
