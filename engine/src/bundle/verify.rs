//! Loads a bundle and checks everything about it that needs no ONNX Runtime.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Component, Path};

use sha2::{Digest, Sha256};

use super::manifest::{self, Manifest, SCHEMA, UnconditionalForm};
use super::npy;
use super::{
    BundleError, BundleFault, ImageSize, Inner, MANIFEST, ModelSpec, Stage, StageSpec, TextSpec,
    Unconditional, onnx,
};
use crate::text::{Embedding, Tokenizer};

/// Largest manifest that is read.
const MANIFEST_LIMIT: u64 = 4 << 20;
/// Most positions of a grid, pixels of a side, and ids: far above any model, and products of them stay within usize.
const SIDE_LIMIT: u32 = 1 << 14;
const IDS_LIMIT: u32 = 1 << 24;

pub(super) fn load(folder: &Path) -> Result<Inner, BundleError> {
    let at = |file: &str, fault| BundleError {
        folder: folder.to_owned(),
        file: file.to_owned(),
        fault,
    };
    let bytes = read_manifest(folder).map_err(|fault| at(MANIFEST, fault))?;
    let refuse = |message: String| at(MANIFEST, BundleFault::Manifest(message));
    let text = std::str::from_utf8(&bytes).map_err(|error| refuse(format!("is not UTF-8: {error}")))?;
    let manifest = manifest::parse(text).map_err(refuse)?;
    check_values(&manifest).map_err(refuse)?;

    for (key, file) in manifest.references() {
        if !manifest.files.contains_key(file) {
            return Err(at(
                file,
                BundleFault::NotListed {
                    by: format!("`{key}` of {MANIFEST}"),
                },
            ));
        }
    }
    for (file, listed) in &manifest.files {
        check_file(folder, file, listed).map_err(|fault| at(file, fault))?;
    }
    for (_, file) in manifest.graphs() {
        check_external_data(folder, file, &manifest.files)?;
    }

    let text = text_spec(&manifest);
    check_tokenizer(folder, &text).map_err(|message| at(&text.tokenizer, BundleFault::Tokenizer(message)))?;
    let stage = |stage, written: &manifest::Stage| {
        let unconditional = match (written.unconditional, &written.null_embedding) {
            (UnconditionalForm::EmptyText, _) => Unconditional::EmptyText,
            (UnconditionalForm::MaskedText, _) => Unconditional::MaskedText,
            (UnconditionalForm::NullEmbedding, Some(file)) => Unconditional::NullEmbedding(
                null_embedding(folder, file, &text)
                    .map_err(|message| at(file, BundleFault::Array(message)))?,
            ),
            (UnconditionalForm::NullEmbedding, None) => {
                return Err(refuse(format!(
                    "{stage}.null_embedding: missing; `unconditional` asks for it"
                )));
            }
        };
        Ok(stage_spec(stage, written, unconditional))
    };
    let base = stage(Stage::Base, &manifest.base)?;
    let superres = manifest
        .superres
        .as_ref()
        .map(|written| stage(Stage::Superres, written))
        .transpose()?;
    Ok(Inner {
        folder: folder.to_owned(),
        digest: hex::encode(Sha256::digest(&bytes)),
        model: ModelSpec {
            name: manifest.model.name,
            version: manifest.model.version,
            license: manifest.model.license,
            description: manifest.model.description,
        },
        text,
        base,
        superres,
    })
}

fn read_manifest(folder: &Path) -> Result<Vec<u8>, BundleFault> {
    let file = File::open(folder.join(MANIFEST)).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MANIFEST_LIMIT + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MANIFEST_LIMIT {
        return Err(BundleFault::Manifest(format!(
            "is larger than {MANIFEST_LIMIT} bytes"
        )));
    }
    Ok(bytes)
}

fn unreadable(error: std::io::Error) -> BundleFault {
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => BundleFault::Missing,
        _ => BundleFault::Unreadable(error),
    }
}

/// Every range that can be told from the manifest alone. The error names the key.
fn check_values(manifest: &Manifest) -> Result<(), String> {
    if manifest.schema != SCHEMA {
        return Err(format!(
            "schema: {} is not known; this version reads {SCHEMA}",
            manifest.schema
        ));
    }
    let name = &manifest.model.name;
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(allowed) {
        return Err(format!(
            "model.name: \"{name}\" must be 1 to 64 of a-z, 0-9, `.`, `_`, `-`"
        ));
    }
    for (key, value) in [
        ("version", &manifest.model.version),
        ("license", &manifest.model.license),
    ] {
        if value.trim().is_empty() || value.chars().any(char::is_control) {
            return Err(format!("model.{key}: must be a line of text"));
        }
    }
    check_text(&manifest.text)?;
    check_stage("base", &manifest.base)?;
    if let Some(superres) = &manifest.superres {
        check_stage("superres", superres)?;
    }
    let (last, stage) = match &manifest.superres {
        Some(superres) => ("superres", superres),
        None => ("base", &manifest.base),
    };
    if stage.decoder.is_none() {
        return Err(format!(
            "{last}.decoder: missing; the last stage makes the picture"
        ));
    }
    Ok(())
}

fn check_text(text: &manifest::Text) -> Result<(), String> {
    for (key, value) in [
        ("max_length", text.max_length),
        ("vocab_size", text.vocab_size),
        ("width", text.width),
    ] {
        if value == 0 || value > IDS_LIMIT as usize {
            return Err(format!("text.{key}: {value} must be 1 to {IDS_LIMIT}"));
        }
    }
    if text.pad_id as usize >= text.vocab_size {
        return Err(format!(
            "text.pad_id: {} must be below text.vocab_size {}",
            text.pad_id, text.vocab_size
        ));
    }
    let ascending = text.length_buckets.windows(2).all(|pair| pair[0] < pair[1]);
    let positive = text.length_buckets.first().is_some_and(|first| *first > 0);
    if !ascending || !positive || text.length_buckets.last() != Some(&text.max_length) {
        return Err(format!(
            "text.length_buckets: must rise from at least 1 to text.max_length {}",
            text.max_length
        ));
    }
    Ok(())
}

fn check_stage(name: &str, stage: &manifest::Stage) -> Result<(), String> {
    for (key, sides) in [("grid", stage.grid), ("image_size", stage.image_size)] {
        if sides.iter().any(|side| *side == 0 || *side > SIDE_LIMIT) {
            return Err(format!(
                "{name}.{key}: {sides:?} must be two numbers of 1 to {SIDE_LIMIT}"
            ));
        }
    }
    if stage.vocab_size > IDS_LIMIT || stage.logits_size > IDS_LIMIT as usize {
        return Err(format!(
            "{name}.vocab_size and {name}.logits_size: must be at most {IDS_LIMIT}"
        ));
    }
    if stage.codebook_size == 0 || stage.codebook_size as usize > stage.logits_size {
        let (size, logits) = (stage.codebook_size, stage.logits_size);
        return Err(format!(
            "{name}.codebook_size: {size} must be 1 to {name}.logits_size {logits}"
        ));
    }
    if stage.mask_id < stage.codebook_size || stage.mask_id >= stage.vocab_size {
        let (codebook, vocabulary) = (stage.codebook_size, stage.vocab_size);
        return Err(format!(
            "{name}.mask_id: {} must be at least {name}.codebook_size {codebook} and below {name}.vocab_size {vocabulary}",
            stage.mask_id
        ));
    }
    if (stage.unconditional == UnconditionalForm::NullEmbedding) != stage.null_embedding.is_some() {
        return Err(format!(
            "{name}.null_embedding: goes with `unconditional = \"null_embedding\"`, and only with it"
        ));
    }
    if let Some(names) = &stage.conditioning
        && (names.is_empty()
            || names
                .iter()
                .enumerate()
                .any(|(index, name)| names[..index].contains(name)))
    {
        return Err(format!(
            "{name}.conditioning: must name at least one tensor, each once"
        ));
    }
    stage
        .defaults
        .validate(&format!("{name}.defaults"))
        .map_err(|error| error.to_string())
}

fn check_file(folder: &Path, file: &str, listed: &manifest::File) -> Result<(), BundleFault> {
    check_inside(folder, file)?;
    let path = folder.join(file);
    let metadata = path.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(BundleFault::Missing);
    }
    if metadata.len() != listed.size {
        return Err(BundleFault::Size {
            found: metadata.len(),
            expected: listed.size,
        });
    }
    let found = digest(&path).map_err(unreadable)?;
    if !found.eq_ignore_ascii_case(&listed.sha256) {
        return Err(BundleFault::Digest {
            found,
            expected: listed.sha256.clone(),
        });
    }
    Ok(())
}

/// `file` must lie in `folder` as it is written, and also once symbolic links are followed.
fn check_inside(folder: &Path, file: &str) -> Result<(), BundleFault> {
    let plain = Path::new(file)
        .components()
        .all(|component| matches!(component, Component::Normal(_)));
    if !plain || file.is_empty() {
        return Err(BundleFault::Escapes);
    }
    let root = folder.canonicalize().map_err(unreadable)?;
    let target = folder.join(file).canonicalize().map_err(unreadable)?;
    if target.starts_with(root) {
        Ok(())
    } else {
        Err(BundleFault::Escapes)
    }
}

/// SHA-256 of a file of any size, hexadecimal.
fn digest(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex::encode(hasher.finalize())),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// External data of the graph in `file` must be listed, hence checked, itself.
fn check_external_data(
    folder: &Path,
    file: &str,
    files: &BTreeMap<String, manifest::File>,
) -> Result<(), BundleError> {
    let at = |file: &str, fault| BundleError {
        folder: folder.to_owned(),
        file: file.to_owned(),
        fault,
    };
    let locations = onnx::external_data(&folder.join(file))
        .map_err(|error| at(file, BundleFault::Graph(error.to_string())))?;
    for location in locations {
        // A location is relative to the ONNX file's own folder.
        let relative = Path::new(file).parent().unwrap_or(Path::new("")).join(&location);
        let Some(relative) = relative.to_str() else {
            return Err(at(&location, BundleFault::Escapes));
        };
        let plain = Path::new(relative)
            .components()
            .all(|component| matches!(component, Component::Normal(_)));
        if !plain {
            return Err(at(relative, BundleFault::Escapes));
        }
        if !files.contains_key(relative) {
            return Err(at(relative, BundleFault::NotListed { by: file.to_owned() }));
        }
    }
    Ok(())
}

fn check_tokenizer(folder: &Path, text: &TextSpec) -> Result<(), String> {
    Tokenizer::from_file(&folder.join(&text.tokenizer), text)
        .map(|_| ())
        .map_err(|error| error.to_string())
}

fn null_embedding(folder: &Path, file: &str, text: &TextSpec) -> Result<Embedding, String> {
    let (values, shape) = npy::read_f32(&folder.join(file))?;
    match shape[..] {
        [length, width] if width == text.width && (1..=text.max_length).contains(&length) => Ok(Embedding {
            values: values.into(),
            length,
            width,
        }),
        _ => Err(format!(
            "its shape is {shape:?}, but must be [1 to text.max_length {}, text.width {}]",
            text.max_length, text.width
        )),
    }
}

fn text_spec(manifest: &Manifest) -> TextSpec {
    let text = &manifest.text;
    TextSpec {
        tokenizer: text.tokenizer.clone(),
        max_length: text.max_length,
        pad_id: text.pad_id,
        vocab_size: text.vocab_size,
        width: text.width,
        length_buckets: text.length_buckets.clone(),
        encoder: text.encoder.clone(),
    }
}

fn stage_spec(stage: Stage, written: &manifest::Stage, unconditional: Unconditional) -> StageSpec {
    let [rows, columns] = written.grid;
    let [height, width] = written.image_size;
    StageSpec {
        stage,
        rows,
        columns,
        codebook_size: written.codebook_size,
        vocab_size: written.vocab_size,
        logits_size: written.logits_size,
        mask_id: written.mask_id,
        unconditional,
        condition: written.condition.clone(),
        step: written.step.clone(),
        conditioning: written.conditioning.clone(),
        decoder: written.decoder.clone(),
        encoder: written.encoder.clone(),
        image_size: ImageSize { height, width },
        defaults: written.defaults.clone(),
    }
}
