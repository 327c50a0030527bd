"""Transformers and VQGANs of muse-maskgit-pytorch on random weights: what is read computes what that package does."""

import pytest
import torch

from muse_models.export import graphs
from muse_models.export.checkpoints import _choose
from muse_models.export.onnx_file import compare, trace_apart
from muse_models.foreign.lucidrains import load_transformer, transformer_prefixes
from muse_models.foreign.lucidrains_vqgan import VqganOptions, load_vqgan, same_tokens, vqgan_prefixes
from muse_models.foreign.weights import ForeignCheckpointError

muse_maskgit_pytorch = pytest.importorskip("muse_maskgit_pytorch")
vector_quantize_pytorch = pytest.importorskip("vector_quantize_pytorch")

TEXT_WIDTH = 20
CODES = 64


@pytest.fixture(autouse=True)
def local_t5(monkeypatch):
    """The package asks a hub for the width of a text encoder unless it has the configuration."""
    import transformers
    from muse_maskgit_pytorch import t5

    for name, width in (("small", TEXT_WIDTH), ("same", 32)):
        monkeypatch.setitem(t5.T5_CONFIGS, name, {"config": transformers.T5Config(d_model=width)})


def original(**others):
    """A random transformer whose every tensor matters, one position's worth of text masked out in the second row."""
    sizes = {"num_tokens": CODES, "seq_len": 16, "dim": 32, "depth": 2, "dim_head": 10, "heads": 3, "t5_name": "small"}
    model = muse_maskgit_pytorch.MaskGitTransformer(**(sizes | {"flash": False} | others)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("self_cond"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def texts(width: int = TEXT_WIDTH):
    """Embeddings [2, 6, width] and masks [2, 6]; padding is zero, as the package has it."""
    mask = torch.tensor([[1] * 6, [1] * 2 + [0] * 4])
    return torch.randn(2, 6, width) * mask[:, :, None], mask


def half_masked(positions: int):
    tokens = torch.randint(0, CODES, (2, positions))
    return torch.where(torch.rand(2, positions) < 0.5, CODES, tokens)


@pytest.mark.parametrize(
    "others",
    [{}, {"flash": True}, {"t5_name": "same"}, {"depth": 1, "heads": 1}, {"ff_mult": 2}, {"dim": 48}],
    ids=str,
)
@pytest.mark.parametrize("dropped", [False, True])
def test_a_base_transformer_computes_what_the_original_does(others, dropped):
    model = original(**others)
    text, mask = texts(32 if others.get("t5_name") == "same" else TEXT_WIDTH)
    tokens = half_masked(16)
    with torch.no_grad():
        expected = model(tokens, text_embeds=text, cond_drop_prob=float(dropped))
        found = load_transformer(model.state_dict(), "", None, None, "here")
        seen = torch.zeros_like(mask) if dropped else mask
        logits = found.step(tokens, found.condition(text, seen))
    torch.testing.assert_close(logits, expected, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("dropped", [False, True])
def test_a_superres_transformer_computes_what_the_original_does(dropped):
    model = original(seq_len=64)
    text, mask = texts()
    tokens, low = half_masked(64), torch.randint(0, CODES, (2, 4, 4))
    with torch.no_grad():
        expected = model(tokens, text_embeds=text, conditioning_token_ids=low, cond_drop_prob=float(dropped))
        found = load_transformer(model.state_dict(), "", None, (4, 4), "here")
        seen = torch.zeros_like(mask) if dropped else mask
        logits = found.step(tokens, found.condition(text, seen, low.flatten(1)))
    torch.testing.assert_close(logits, expected, atol=3e-5, rtol=3e-5)


@pytest.mark.parametrize("low_grid", [None, (2, 3)])
def test_the_exported_graphs_compute_it_too_and_rows_are_alike(low_grid, rows_are_alike):
    model = load_transformer(original().state_dict(), "", None, low_grid, "here")
    condition = graphs.condition_graph(model, *texts())
    for graph in (condition, graphs.step_graph(model, condition)):
        traced = trace_apart(graph)
        assert compare(graph, traced.proto()).worst < 3e-5
        rows_are_alike(graph, traced)


def test_a_grid_may_be_smaller_than_what_there_are_positions_for():
    model = original(seq_len=20)
    tokens = half_masked(15)
    text, mask = texts()
    with pytest.raises(ForeignCheckpointError, match="20 positions are no square"):
        load_transformer(model.state_dict(), "", None, None, "here")
    with pytest.raises(ForeignCheckpointError, match="more than its 20 positions"):
        load_transformer(model.state_dict(), "", (5, 5), None, "here")
    found = load_transformer(model.state_dict(), "", (3, 5), None, "here")
    with torch.no_grad():
        expected = model(tokens, text_embeds=text)
        logits = found.step(tokens, found.condition(text, mask))
    torch.testing.assert_close(logits, expected, atol=3e-5, rtol=3e-5)


def test_what_cannot_be_expressed_is_refused():
    weights = dict(original().state_dict())
    cases = [
        (weights | {"self_cond_to_init_embed.0.gamma": torch.full((32,), 1.1)}, "self-conditioning"),
        (weights | {"token_emb.weight": torch.zeros(CODES, 32)}, "one embedding more, for the mask"),
        (weights | {"something.weight": torch.zeros(3)}, "something.weight, which no such transformer has"),
        (weights | {"transformer_blocks.norm.beta": torch.ones(32)}, "transformer_blocks.norm.beta"),
        (weights | {"transformer_blocks.layers.1.0.to_q.weight": torch.zeros(7, 32)}, "to_q|query.weight"),
        ({name: value for name, value in weights.items() if ".layers." not in name}, "without layers"),
    ]
    for tensors, message in cases:
        with pytest.raises(ForeignCheckpointError, match=message) as caught:
            load_transformer(tensors, "", None, None, "here")
        assert "\n" not in str(caught.value) and str(caught.value).startswith("here: ")


def test_a_critic_is_not_taken_for_a_transformer():
    critic = muse_maskgit_pytorch.TokenCritic(
        num_tokens=CODES, seq_len=16, dim=32, depth=1, t5_name="small", flash=False
    )
    weights = {f"transformer.{name}": value for name, value in original().state_dict().items()}
    weights |= {f"token_critic.{name}": value for name, value in critic.state_dict().items()}
    assert transformer_prefixes(weights) == ["transformer."]


def vqgan(quantiser: str, **others):
    """A random tokenizer. With codes the package cannot make one (its call of `VectorQuantize` raises), though it can
    load and run one: the quantiser is put in by hand, as the package means to."""
    model = muse_maskgit_pytorch.VQGanVAE(dim=16, codebook_size=CODES, layers=2, use_vgg_and_gan=False, **others)
    if quantiser != "lookup_free":
        model.lookup_free_quantization = False
        model.quantizer = vector_quantize_pytorch.VectorQuantize(
            dim=model.enc_dec.encoded_dim, codebook_size=CODES, accept_image_fmap=True, codebook_dim=12,
            use_cosine_sim=quantiser == "cosine",
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("quantiser", ["lookup_free", "codes", "cosine"])
@pytest.mark.parametrize(
    "others", [{}, {"encdec_num_resnet_blocks": (1, 2), "encdec_first_conv_kernel_size": 3}], ids=str
)
def test_a_tokenizer_computes_what_the_original_does(quantiser, others, rows_are_alike):
    model = vqgan(quantiser, **others)
    images = torch.rand(2, 3, 16, 24)
    tokens = torch.randint(0, CODES, (2, 4, 6))
    found = load_vqgan(model.state_dict(), "", (4, 6), VqganOptions(), "here")
    assert found.image_size == (16, 24) and found.codebook_size == CODES
    with torch.no_grad():
        _, expected, _ = model.encode(images)
        assert len(expected.unique()) > 3
        assert torch.equal(found.encode(images), expected.flatten(1))
        if quantiser == "lookup_free":
            picture = model.decode_from_ids(tokens)
        else:
            codes = model.quantizer.codebook[tokens]
            picture = model.decode(model.quantizer.project_out(codes).permute(0, 3, 1, 2))
        torch.testing.assert_close(found.decode(tokens.flatten(1)), picture.clamp(0, 1), atol=1e-5, rtol=1e-5)
    for graph in (graphs.decoder_graph(found, CODES, 24), graphs.encoder_graph(found, images)):
        traced = trace_apart(graph)
        difference = compare(graph, traced.proto())
        assert difference.worst < 1e-5 and difference.equal == 1
        rows_are_alike(graph, traced)


def test_another_scale_of_lookup_free_codes_is_told_by_the_caller():
    model = vqgan("lookup_free", lfq_kwargs={"codebook_scale": 0.5})
    found = load_vqgan(model.state_dict(), "", (4, 4), VqganOptions(codebook_scale=0.5), "here")
    tokens = torch.randint(0, CODES, (2, 4, 4))
    with torch.no_grad():
        picture = model.decode_from_ids(tokens).clamp(0, 1)
        torch.testing.assert_close(found.decode(tokens.flatten(1)), picture, atol=1e-5, rtol=1e-5)


def test_tokenizers_that_cannot_be_expressed_are_refused():
    weights = dict(vqgan("lookup_free").state_dict())
    with_codes = dict(vqgan("codes").state_dict())
    several = dict(vqgan("lookup_free", lfq_kwargs={"num_codebooks": 2}).state_dict())
    rotated = dict(vqgan("lookup_free", lfq_kwargs={"orthogonal_rotation": True}).state_dict())
    cases = [
        (several, VqganOptions(), "known is one codebook"),
        (rotated, VqganOptions(), "orthogonal_rot"),
        (with_codes | {"quantizer._codebook.initted": torch.tensor(False)}, VqganOptions(), "never filled"),
        (with_codes | {"quantizer._codebook.codebook_mean": torch.zeros(1)}, VqganOptions(), "codebook_mean"),
        (with_codes | {"quantizer._codebook.embed": torch.zeros(2, CODES, 12)}, VqganOptions(), "one plain codebook"),
        (weights, VqganOptions(groups=24), "do not divide into 24 groups"),
        (weights | {"enc_dec.encoders.0.weight": torch.zeros(16, 1, 5, 5)}, VqganOptions(), "three, RGB"),
        (weights | {"enc_dec.decoders.9.weight": torch.zeros(3)}, VqganOptions(), "the layers under"),
        (weights | {"enc_dec.encoders.1.1.weight": torch.zeros(3)}, VqganOptions(), "not such a tokenizer"),
    ]
    for tensors, options, message in cases:
        with pytest.raises(ForeignCheckpointError, match=message) as caught:
            load_vqgan(tensors, "", (4, 4), options, "here")
        assert "\n" not in str(caught.value)


def test_two_tokenizers_make_the_same_tokens_only_with_the_same_encoder_and_codes():
    weights = dict(vqgan("lookup_free").state_dict())
    last = max(name for name in weights if name.startswith("enc_dec.decoders.") and name.endswith("weight"))
    cases = [({}, True), ({last: weights[last] + 1}, True), ({"enc_dec.encoders.0.bias": torch.ones(16)}, False)]
    one = load_vqgan(weights, "", (4, 4), VqganOptions(), "here")
    for others, same in cases:
        assert same_tokens(one, load_vqgan(weights | others, "", (4, 4), VqganOptions(), "here")) is same


def test_the_part_of_a_file_is_chosen_and_never_guessed(tmp_path):
    path = tmp_path / "file.pt"
    assert _choose(["vae."], None, "base_maskgit.", path, "image tokenizer") == "vae."
    assert _choose(["ema_model.", "online_model."], None, "base_maskgit.", path, "image tokenizer") == "ema_model."
    both = ["base_maskgit.vae.", "superres_maskgit.vae."]
    assert _choose(both, None, "superres_maskgit.", path, "image tokenizer") == "superres_maskgit.vae."
    assert _choose(["a.", "b."], "b.", "base_maskgit.", path, "transformer") == "b."
    for prefixes, chosen, message in (
        (["a.", "b."], None, "set `prefix` to one of"), (["a."], "c.", "no transformer under 'c.'"), ([], None, "holds no"),
    ):
        with pytest.raises(ForeignCheckpointError, match=message):
            _choose(prefixes, chosen, "base_maskgit.", path, "transformer")


def test_prefixes_are_found():
    model = vqgan("lookup_free")
    assert vqgan_prefixes({f"vae.{name}": value for name, value in model.state_dict().items()}) == ["vae."]
    assert vqgan_prefixes(model.state_dict()) == [""]
