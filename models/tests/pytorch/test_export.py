"""Exported graphs against PyTorch, and against the bundle's contract, on tiny random weights."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from muse_models.export import graphs, storage
from muse_models.export.bundle import write_bundle
from muse_models.export.onnx_file import compare, export, session, trace
from muse_models.export.tiny import tiny_parts
from muse_models.reference.bundle import Bundle
from muse_models.reference.pipeline import Request, generate
from muse_models.tokenizer.model import ImageTokenizer

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


def test_storage_is_really_small(written):
    def kinds(name):
        return {initializer.data_type for initializer in onnx.load(written[1] / f"{name}.onnx").graph.initializer}

    assert onnx.TensorProto.INT8 in kinds("base_step")
    assert onnx.TensorProto.FLOAT16 in kinds("superres_step")


@pytest.mark.parametrize("stage_name", ["base", "superres"])
def test_graphs_compute_what_pytorch_does_at_other_batch_sizes(written, stage_name):
    part = getattr(written[0], stage_name)
    text = torch.randn(2, 20, 24)
    mask = (torch.arange(20)[None] < torch.tensor([[20], [4]])).long()
    condition = graphs.condition_graph(part.model, text, mask)
    for graph in (condition, graphs.step_graph(part.model, condition)):
        running = session(trace(graph))
        for batch in (1, 3):
            inputs = {name: torch.cat([value, value])[:batch] for name, value in graph.inputs.items()}
            with torch.no_grad():
                expected = graph.module(*inputs.values())
            expected = expected if isinstance(expected, tuple) else (expected,)
            outputs = running.run(graph.outputs, {name: value.numpy() for name, value in inputs.items()})
            for here, there in zip(expected, outputs, strict=True):
                np.testing.assert_allclose(there, here.numpy(), atol=2e-5, rtol=2e-5)


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
