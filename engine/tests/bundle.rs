//! Every fault of a bundle is one line that names the file and the fault.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // helpers of tests

mod support;

use muse_engine::pixels::ImageDecoder;
use muse_engine::stage::OnnxStage;
use muse_engine::{Bundle, ImageSize, Stage, TextEncoder, Unconditional};
use support::{Copy, bundle, options};

#[test]
fn a_sound_bundle_says_what_its_manifest_says() {
    let tiny = bundle("tiny");
    assert_eq!(tiny.model().name, "muse-tiny");
    assert_eq!(tiny.text().length_buckets, [4, 12, 20]);
    let base = tiny.stage(Stage::Base).unwrap();
    assert_eq!(
        (base.rows, base.columns, base.mask_id, base.codebook_size),
        (4, 6, 39, 37)
    );
    assert_eq!(base.unconditional, Unconditional::MaskedText);
    assert_eq!(tiny.last_stage().stage, Stage::Superres);
    assert_eq!(
        tiny.image_size(),
        ImageSize {
            height: 32,
            width: 48
        }
    );
    assert_eq!(
        tiny.digest(),
        "ece591061a36f778f0cc1bf947d0c34b23e29957c6f7eb8157f145f55e9947d8"
    );
}

#[test]
fn a_flipped_byte_is_found() {
    let copy = Copy::of_tiny();
    let path = copy.path().join("base_step.onnx");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let fault = copy.fault();
    assert!(fault.starts_with("base_step.onnx: its SHA-256 is "), "{fault}");
}

#[test]
fn a_missing_or_cut_file_is_found() {
    let copy = Copy::of_tiny();
    std::fs::remove_file(copy.path().join("superres_decoder.onnx")).unwrap();
    assert_eq!(copy.fault(), "superres_decoder.onnx: missing");
    let copy = Copy::of_tiny();
    std::fs::write(copy.path().join("tokenizer.json"), "{}").unwrap();
    assert!(
        copy.fault()
            .starts_with("tokenizer.json: has 2 bytes, but [files] says 5973"),
        "{}",
        copy.fault()
    );
}

#[test]
fn a_folder_without_a_manifest_is_no_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let error = Bundle::load(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with("bundle.toml: missing"), "{error}");
    let error = Bundle::load(&folder.path().join("nowhere"))
        .unwrap_err()
        .to_string();
    assert!(error.ends_with("bundle.toml: missing"), "{error}");
}

#[test]
fn a_manifest_with_an_unknown_a_missing_or_a_wrong_key_is_refused() {
    for (from, to, expected) in [
        ("schema = 1", "schema = 2", "bundle.toml: schema: 2 is not known"),
        ("pad_id = 0", "pad_id = 0\nextra = 1", "unknown field `extra`"),
        ("pad_id = 0\n", "", "missing field `pad_id`"),
        ("width = 24", "width = \"24\"", "invalid type"),
        ("schema = 1", "schema = ", "bundle.toml: line 1"),
        ("muse-tiny", "Muse Tiny", "model.name"),
        (
            "length_buckets = [4, 12, 20]",
            "length_buckets = [4, 12]",
            "text.length_buckets",
        ),
        ("pad_id = 0", "pad_id = 86", "text.pad_id"),
        ("mask_id = 39", "mask_id = 36", "base.mask_id"),
        ("mask_id = 39", "mask_id = 41", "base.mask_id"),
        ("codebook_size = 37", "codebook_size = 41", "base.codebook_size"),
        ("grid = [4, 6]", "grid = [0, 6]", "base.grid"),
        ("steps = 6", "steps = 0", "base.defaults.steps"),
        ("guidance = 2.0", "guidance = nan", "base.defaults.guidance"),
        ("\"masked_text\"", "\"null_embedding\"", "base.null_embedding"),
        (
            "decoder = \"superres_decoder.onnx\"\n",
            "",
            "superres.decoder: missing",
        ),
    ] {
        let copy = Copy::of_tiny();
        let fault = copy.edit(from, to).fault();
        assert!(
            fault.starts_with("bundle.toml: ") && fault.contains(expected),
            "{from} -> {to}: {fault}"
        );
    }
}

#[test]
fn a_file_that_is_not_listed_or_outside_of_the_folder_is_refused() {
    let copy = Copy::of_tiny();
    let fault = copy
        .edit("step = \"base_step.onnx\"", "step = \"other.onnx\"")
        .fault();
    assert_eq!(
        fault,
        "other.onnx: is used by `base.step` of bundle.toml, but [files] does not list it"
    );

    for outside in ["../secret", "/etc/hostname", "a/../../b"] {
        let copy = Copy::of_tiny();
        let fault = copy
            .edit(
                "[files]",
                &format!("[files]\n\"{outside}\" = {{ sha256 = \"00\", size = 1 }}"),
            )
            .fault();
        assert!(
            fault.starts_with(&format!("{outside}: leads out of the bundle's folder")),
            "{fault}"
        );
    }
    let copy = Copy::of_tiny();
    std::os::unix::fs::symlink("/etc/hostname", copy.path().join("link")).unwrap();
    let fault = copy
        .edit("[files]", "[files]\n\"link\" = { sha256 = \"00\", size = 1 }")
        .fault();
    assert!(fault.starts_with("link: leads out of"), "{fault}");
}

#[test]
fn a_tokenizer_of_another_vocabulary_is_refused() {
    let copy = Copy::of_tiny();
    let fault = copy.edit("vocab_size = 86", "vocab_size = 90").fault();
    assert_eq!(
        fault,
        "tokenizer.json: its vocabulary has 86 entries, but text.vocab_size of bundle.toml says 90"
    );
}

#[test]
fn a_file_that_is_no_graph_is_refused() {
    let copy = Copy::of_tiny();
    std::fs::write(copy.path().join("base_step.onnx"), "not a graph at all").unwrap();
    let fault = copy.list("base_step.onnx").fault();
    assert!(
        fault.starts_with("base_step.onnx: is not an ONNX file"),
        "{fault}"
    );
}

fn stage_fault(copy: &Copy, stage: Stage) -> String {
    let options = options();
    let error = OnnxStage::open(&copy.load(), stage, &options)
        .expect_err("the graph does not fit")
        .to_string();
    copy.one_line(&error)
}

#[test]
fn a_wrong_tensor_name_is_found_when_the_graph_is_opened() {
    let copy = Copy::of_tiny();
    copy.replace_bytes("base_step.onnx", b"logits", b"logitz");
    let fault = stage_fault(&copy, Stage::Base);
    assert_eq!(
        fault,
        "base_step.onnx: has no output `logits` (f32 [M, 40]); its outputs are logitz"
    );

    let copy = Copy::of_tiny();
    copy.replace_bytes("superres_condition.onnx", b"low_tokens", b"lowXtokens");
    let fault = stage_fault(&copy, Stage::Superres);
    assert!(
        fault.starts_with("superres_condition.onnx: has no input `low_tokens` (i64 [B, 24])"),
        "{fault}"
    );
}

#[test]
fn a_wrong_shape_is_found_when_the_graph_is_opened() {
    let copy = Copy::of_tiny();
    copy.edit("grid = [4, 6]", "grid = [4, 7]");
    let fault = stage_fault(&copy, Stage::Base);
    assert_eq!(
        fault,
        "base_step.onnx: its input `tokens` is i64 [dynamic, 24], but must be i64 [G, 28]"
    );

    let copy = Copy::of_tiny();
    copy.edit("logits_size = 40", "logits_size = 48");
    let fault = stage_fault(&copy, Stage::Base);
    assert_eq!(
        fault,
        "base_step.onnx: its output `logits` is f32 [dynamic, 40], but must be f32 [M, 48]"
    );

    let copy = Copy::of_tiny();
    copy.edit("image_size = [32, 48]", "image_size = [64, 96]");
    let error = ImageDecoder::open(&copy.load(), Stage::Base, &options())
        .expect_err("the size is wrong")
        .to_string();
    let fault = copy.one_line(&error);
    assert!(
        fault.starts_with("base_decoder.onnx: its output `image` is f32 [dynamic, 3, 32, 48]"),
        "{fault}"
    );

    let copy = Copy::of_tiny();
    copy.edit("width = 24", "width = 32");
    let error = TextEncoder::open(&copy.load(), &options())
        .expect_err("the width is wrong")
        .to_string();
    let fault = copy.one_line(&error);
    assert!(
        fault.starts_with("text_encoder.onnx: its output `embedding` is "),
        "{fault}"
    );
}

#[test]
fn an_optional_input_of_a_step_under_another_name_is_refused() {
    for (name, other) in [("grids", "gridz"), ("positions", "positionz")] {
        let copy = Copy::of_tiny();
        copy.replace_bytes("base_step.onnx", name.as_bytes(), other.as_bytes());
        let fault = stage_fault(&copy, Stage::Base);
        assert_eq!(
            fault,
            format!("base_step.onnx: has an input `{other}` that docs/bundle.md does not know")
        );
    }
}

#[test]
fn conditioning_that_the_graph_does_not_make_is_refused() {
    let copy = Copy::of_tiny();
    copy.edit(
        "step = \"base_step.onnx\"",
        "step = \"base_step.onnx\"\nconditioning = [\"nothing\"]",
    );
    let fault = stage_fault(&copy, Stage::Base);
    assert_eq!(
        fault,
        "base_condition.onnx: has no output `nothing`, which base.conditioning of bundle.toml names"
    );
}

#[test]
fn an_embedding_table_smaller_than_the_vocabulary_is_found_when_the_graph_is_opened() {
    let copy = Copy::of_tiny();
    copy.edit("vocab_size = 41", "vocab_size = 60");
    let fault = stage_fault(&copy, Stage::Base);
    let expected = "base_step.onnx: fails on the id 59, the largest that base.vocab_size allows: ";
    assert!(fault.starts_with(expected), "{fault}");
}
