"""Exported graphs against PyTorch, and against the bundle's contract, on tiny random weights."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from muse_models.export import graphs, storage
from muse_models.export.bundle import bundle_graphs, write_bundle
from muse_models.export.onnx_file import compare, export, session, trace, trace_apart
from muse_models.export.tiny import tiny_parts
from muse_models.reference.bundle import Bundle
from muse_models.reference.pipeline import Request, generate
from muse_models.tokenizer.model import ImageTokenizer
from muse_models.training.from_bundle import stored_weights

GRAPHS = (
    "text_encoder", "base_condition", "base_step", "base_decoder", "base_encoder",
    "superres_condition", "superres_step", "superres_decoder", "superres_encoder",
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    torch.manual_seed(0)
    parts = tiny_parts()
    folder = tmp_path_factory.mktemp("export") / "bundle"
    reports = write_bundle(parts, folder)
    assert [report.file for report in reports] == [f"{name}.onnx" for name in GRAPHS]
    return parts, folder


def test_a_bundle_is_complete_and_makes_a_picture(written):
    _, folder = written
    bundle = Bundle(folder)
    listed = {path.name for path in folder.iterdir()} - {"bundle.toml"}
    assert set(bundle.manifest["files"]) == listed
    assert generate(bundle, Request("a red circle", seed=1)).shape == (3, 32, 48)


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_have_a_dynamic_batch_and_versions_that_runtimes_read(written, name):
    model = onnx.load(written[1] / f"{name}.onnx")
    assert model.ir_version <= 10
    assert {entry.domain: entry.version for entry in model.opset_import}[""] >= 17
    for value in (*model.graph.input, *model.graph.output):
        axes = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        assert isinstance(axes[0], str), f"{value.name} {axes}"


@pytest.mark.parametrize(
    ("name", "attentions"),
    [("text_encoder", 2), ("base_step", 4), ("superres_condition", 1), ("superres_step", 4), ("base_condition", 0)],
)
def test_attention_is_one_fused_node(written, name, attentions):
    model = onnx.load(written[1] / f"{name}.onnx")
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MultiHeadAttention") == attentions
    assert "Softmax" not in kinds


@pytest.mark.parametrize("name", GRAPHS)
def test_widened_weights_are_folded_when_the_file_is_loaded(written, tmp_path, name):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(written[1] / f"{name}.onnx"), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx")
    small = {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT16}
    assert not small & {initializer.data_type for initializer in optimized.graph.initializer}
    # Nor is a product of two constants (super-resolution's tables of merged tokens) left for every step.
    constant = {initializer.name for initializer in optimized.graph.initializer}
    assert not [node.name for node in optimized.graph.node if constant.issuperset(node.input)]


def test_storage_is_really_small(written):
    def kinds(name):
        return {initializer.data_type for initializer in onnx.load(written[1] / f"{name}.onnx").graph.initializer}

    assert onnx.TensorProto.INT8 in kinds("base_step")
    assert onnx.TensorProto.FLOAT16 in kinds("superres_step")


@pytest.fixture(scope="module")
def traced():
    """Every graph of the tiny bundle, and its ONNX form, by name."""
    torch.manual_seed(0)
    return {
        name.removesuffix(".onnx"): (graph, trace_apart(graph)) for name, graph, _ in bundle_graphs(tiny_parts())
    }


ROWS = np.array([0, 1, 1, 0, 1, 0, 0, 1])
"""Which of a graph's two examples each row of a batch is."""


def expectations(graph):
    """What PyTorch gives for each of the two examples, output by output; of steps the logits of whole grids."""
    inputs = list(graph.inputs.values())
    with torch.no_grad():
        if "grids" not in graph.inputs:
            expected = graph.module(*inputs)
        else:
            model = graph.module.model
            conditioning = zip(model.conditioning_names(), (values[:2] for values in inputs[3:]), strict=True)
            expected = model.step(inputs[0], dict(conditioning))
    return [value.numpy() for value in (expected if isinstance(expected, tuple) else (expected,))]


def run_rows(running, graph, rows, positions=None):
    """The outputs for a batch of examples; steps at `positions` [M], or everywhere and then [R, S, V]."""
    inputs = {name: value.numpy() for name, value in graph.inputs.items()}
    if "grids" not in inputs:
        return running.run(graph.outputs, {name: value[rows] for name, value in inputs.items()})
    inputs = {name: value[rows] for name, value in inputs.items() if name not in ("grids", "positions")}
    count, size = inputs["tokens"].shape
    inputs["grids"] = np.arange(count)
    inputs["positions"] = np.arange(count * size) if positions is None else positions
    (logits,) = running.run(graph.outputs, inputs)
    return [logits.reshape(count, size, -1) if positions is None else logits]


@pytest.mark.parametrize("name", ["base_step", "superres_step"])
def test_a_step_gives_the_same_logits_wherever_they_are_asked_for_and_whoever_shares_a_grid(traced, name):
    graph, apart = traced[name]
    running = session(apart.proto())
    (everywhere,) = run_rows(running, graph, [0, 1])
    size = everywhere.shape[1]
    flat = everywhere.reshape(2 * size, -1)
    random = np.random.default_rng(0)
    for count in (1, 2, 3, 5, size, 2 * size):
        positions = random.permutation(2 * size)[:count]
        (found,) = run_rows(running, graph, [0, 1], positions)
        np.testing.assert_array_equal(found, flat[positions], err_msg=f"{count} positions")
    # Rows 0 and 2 of the examples have one grid, and different texts.
    inputs = {name: value.numpy() for name, value in graph.inputs.items()}
    (shared,) = running.run(graph.outputs, inputs)
    conditioning = {name: inputs[name] for name in inputs if name not in ("tokens", "grids", "positions")}
    if "low" in conditioning:
        conditioning["low"] = conditioning["low"][inputs["grids"]]
    own = conditioning | {
        "tokens": inputs["tokens"][inputs["grids"]], "grids": np.arange(3), "positions": inputs["positions"],
    }
    np.testing.assert_array_equal(running.run(graph.outputs, own)[0], shared)


@pytest.mark.parametrize("precision", storage.PRECISIONS)
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_compute_what_pytorch_does_whatever_the_batch(traced, name, precision):
    graph, apart = traced[name]
    running = session(apart.proto(precision))
    expected = expectations(graph)
    alone = [run_rows(running, graph, [row]) for row in (0, 1)]
    # Of the output's spread; int8 rounds a weight to 1/254 of its channel's range.
    allowed = {"f32": 1e-5, "f16": 2e-3, "int8": 3e-2}[precision]
    for batch in (1, 3, 8):
        rows = ROWS[:batch]
        outputs = run_rows(running, graph, rows)
        for place, (here, there) in enumerate(zip(expected, outputs, strict=True)):
            if np.issubdtype(here.dtype, np.floating):
                off = np.sqrt(np.mean(np.square(there.astype(np.float64) - here[rows])))
                assert off <= allowed * here.std(), f"{graph.outputs[place]}, {batch} rows: off by {off:.1e}"
            else:
                share = np.mean(there == here[rows])
                assert share >= (1 if precision == "f32" else 0.9), f"{graph.outputs[place]}: {share:.1%} are the same"
            for index, row in enumerate(rows):
                np.testing.assert_array_equal(there[index], alone[row][place][0], err_msg=f"{batch} rows")


@pytest.mark.parametrize("precision", storage.PRECISIONS)
def test_weights_in_a_file_of_their_own_are_the_same_weights(traced, tmp_path, precision):
    graph, apart = traced["base_step"]
    inputs = {name: value.numpy() for name, value in graph.inputs.items()}
    path = tmp_path / "graph.onnx"
    size = apart.write(path, precision, external_above=1000)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["graph.onnx", "graph.onnx.data"]
    assert size == sum(file.stat().st_size for file in tmp_path.iterdir())
    (inside,) = session(apart.proto(precision)).run(None, inputs)
    (beside,) = session(path).run(None, inputs)
    np.testing.assert_array_equal(inside, beside)


def test_weights_that_a_bundle_has_are_stored_as_they_are_there(traced, tmp_path):
    apart = traced["base_step"][1]
    apart.write(tmp_path / "first.onnx", "int8")
    widened = {
        name: TensorOf(values) for name, values in stored_weights(tmp_path / "first.onnx").items()
    }
    again = storage.Traced(apart.model, apart.weights | widened)
    kept = storage.Kept(tmp_path / "first.onnx")
    again.write(tmp_path / "kept.onnx", "int8", kept=kept)
    assert (tmp_path / "kept.onnx").read_bytes() == (tmp_path / "first.onnx").read_bytes()
    assert kept.like(np.full((41, 32), 9.0, np.float32)) is None


class TensorOf:
    """An array as `Traced` has it."""

    def __init__(self, values):
        self.shape, self._values = values.shape, values

    def numpy(self):
        return self._values


def test_image_tokenizers_compute_each_picture_alike_in_every_batch(tmp_path):
    torch.manual_seed(0)
    tokenizer = ImageTokenizer(32, 4, 5, (32, 48), (1, 1), (1, 1)).eval()
    for parameter in tokenizer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    images = torch.rand(5, 3, 32, 32)
    decoder = graphs.decoder_graph(tokenizer, 1024, 16)
    encoder = graphs.encoder_graph(tokenizer, images[:2])
    for graph, inputs in ((decoder, torch.randint(0, 1024, (5, 16))), (encoder, images)):
        exact, _ = export(graph, tmp_path / "graph.onnx", "f32")
        assert exact.worst < 1e-5 and exact.equal == 1
        running = session(tmp_path / "graph.onnx")
        (name,) = graph.inputs
        (together,) = running.run(None, {name: inputs.numpy()})
        for index in range(5):
            (alone,) = running.run(None, {name: inputs[index : index + 1].numpy()})
            np.testing.assert_array_equal(alone[0], together[index])


def test_quantisation_keeps_each_channel_s_own_scale():
    random = np.random.default_rng(0)
    weights = random.normal(size=(64, 8)).astype(np.float32) * np.logspace(-3, 2, 8, dtype=np.float32)
    values, scale = storage.quantise(weights, axis=1)
    assert values.dtype == np.int8 and scale.shape == (1, 8)
    error = np.sqrt(np.square(values * scale - weights).mean(axis=0)) / weights.std(axis=0)
    assert error.max() < 0.015


def test_a_graph_that_is_not_finite_is_refused():
    class Faulty(torch.nn.Module):
        def forward(self, values):
            return values, values / 0 - values / 0

    graph = graphs.Graph(Faulty(), {"values": torch.ones(2, 3)}, ["whole", "broken"])
    with pytest.raises(ValueError, match="broken is not finite"):
        compare(graph, trace(graph))


def test_the_largest_difference_of_all_outputs_is_reported():
    class Two(torch.nn.Module):
        def __init__(self, off):
            super().__init__()
            self.register_buffer("off", off)

        def forward(self, values):
            return values + self.off[0], values + self.off[1]

    # The first output is off everywhere by a little, the second at one place by much.
    off = torch.zeros(2, 2, 400)
    off[0], off[1, 0, 0] = 0.1, 0.5
    values = {"values": torch.randn(2, 400)}
    traced = trace(graphs.Graph(Two(off), values, ["a", "b"]))
    found = compare(graphs.Graph(Two(torch.zeros_like(off)), values, ["a", "b"]), traced)
    assert found.worst == pytest.approx(0.5) and found.root_mean_square == pytest.approx(0.1)


def test_a_weight_beyond_the_range_of_f16_is_refused():
    with pytest.raises(ValueError, match="beyond the range"):
        storage._to_half("w", np.array([1e6], np.float32))
