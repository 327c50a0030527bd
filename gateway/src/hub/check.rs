//! Whether what a worker says can be true: pure.

use bytes::Bytes;
use muse_proto::{
    internal::v1::{ElementType, Hello, Picture, Pictures, Tensor},
    v1::{
        GuidanceSchedule, ImageFormat, ImageInfo, MaskSchedule, Model, ModelStage, Sampling, Scheduler, Stage,
    },
};
use sha2::{Digest as _, Sha256};
use tonic_types::FieldViolation;

use crate::validate::Violations;

/// Bytes of a worker's name.
const NAME_BYTES: usize = 128;
/// Bytes of a model's name; part of keys and metrics.
const MODEL_BYTES: usize = 64;

/// Checks who attaches.
pub(super) fn hello(hello: &Hello) -> Result<Model, Vec<FieldViolation>> {
    let mut found = Violations::default();
    let plain = |text: &str, extra: &[u8]| {
        text.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || extra.contains(&byte))
    };
    if hello.worker_id.is_empty() || hello.worker_id.len() > NAME_BYTES || !plain(&hello.worker_id, b"._-:") {
        found.add(
            "hello.worker_id",
            format!("must have 1 to {NAME_BYTES} letters, digits, '.', '_', '-' or ':'"),
        );
    }
    let model = hello.model.clone().unwrap_or_default();
    if model.name.is_empty() || model.name.len() > MODEL_BYTES || !plain(&model.name, b"._-") {
        found.add(
            "hello.model.name",
            format!("must have 1 to {MODEL_BYTES} letters, digits, '.', '_' or '-'"),
        );
    }
    if model.bundle_digest.len() != 64 || !plain(&model.bundle_digest, b"") {
        found.add("hello.model.bundle_digest", "must be a SHA-256 in hexadecimal");
    }
    if !model.stages.iter().any(|served| served.stage == hello.stage) {
        found.add("hello.stage", "must be one of the model's stages");
    }
    stages(&model.stages, &mut found);
    if model.width == 0 || model.height == 0 {
        found.add("hello.model", "must give the pictures' width and height");
    }
    let found = found.into_vec();
    if found.is_empty() { Ok(model) } else { Err(found) }
}

fn stages(stages: &[ModelStage], found: &mut Violations) {
    if stages.is_empty() {
        found.add("hello.model.stages", "must name at least one stage");
    }
    for (index, served) in stages.iter().enumerate() {
        let field = format!("hello.model.stages[{index}]");
        if served.stage() == Stage::Unspecified
            || stages.iter().take(index).any(|other| other.stage == served.stage)
        {
            found.add(
                format!("{field}.stage"),
                "must be set, and differ from the others'",
            );
        }
        if served.grid_rows == 0 || served.grid_columns == 0 || served.codebook_size == 0 {
            found.add(field.clone(), "must give the grid and the codebook's size");
        }
        if !is_complete(&served.defaults.unwrap_or_default()) {
            found.add(
                format!("{field}.defaults"),
                "must set every field: they are what a silent request gets",
            );
        }
    }
}

fn is_complete(defaults: &Sampling) -> bool {
    defaults.steps.is_some_and(|steps| steps > 0)
        && defaults.guidance.is_some_and(f32::is_finite)
        && defaults.temperature.is_some_and(f32::is_finite)
        && defaults.choice_temperature.is_some_and(f32::is_finite)
        && defaults.top_k.is_some()
        && GuidanceSchedule::try_from(defaults.guidance_schedule)
            .is_ok_and(|it| it != GuidanceSchedule::Unspecified)
        && MaskSchedule::try_from(defaults.mask_schedule).is_ok_and(|it| it != MaskSchedule::Unspecified)
        && Scheduler::try_from(defaults.scheduler).is_ok_and(|it| it != Scheduler::Unspecified)
}

/// Checks token grids `[count, S]` of a stage; gives the count.
pub(super) fn tokens(tensor: &Tensor, served: &ModelStage, max_count: u32) -> Result<u32, String> {
    let size = u64::from(served.grid_rows) * u64::from(served.grid_columns);
    let [count, width] = tensor.shape[..] else {
        return Err(format!("token grids have 2 axes, not {}", tensor.shape.len()));
    };
    if width != size || count == 0 || count > u64::from(max_count) {
        return Err(format!(
            "token grids of shape [{count}, {width}] where [1 to {max_count}, {size}] is wanted"
        ));
    }
    let width = match tensor.element_type() {
        ElementType::U16 => 2,
        ElementType::U32 => 4,
        other => return Err(format!("token grids are u16 or u32, not {other:?}")),
    };
    if tensor.data.len() as u64 != count * size * width {
        return Err(format!(
            "{} bytes do not make a tensor of shape {:?}",
            tensor.data.len(),
            tensor.shape
        ));
    }
    let value = |bytes: &[u8]| {
        bytes
            .iter()
            .rev()
            .fold(0_u32, |value, byte| value << 8 | u32::from(*byte))
    };
    if let Some(foreign) = tensor
        .data
        .chunks_exact(width as usize)
        .map(value)
        .find(|id| *id >= served.codebook_size)
    {
        return Err(format!(
            "token {foreign} is not in the codebook of {}",
            served.codebook_size
        ));
    }
    // At most max_count, a u32.
    Ok(count as u32)
}

/// Checks a job's pictures: the bytes, and what the gateway itself says about them.
pub(super) fn pictures(pictures: Pictures, max_count: u32) -> Result<(Vec<ImageInfo>, Vec<Bytes>), String> {
    let count = pictures.pictures.len();
    if count == 0 || count > max_count as usize {
        return Err(format!("{count} pictures where 1 to {max_count} are wanted"));
    }
    let mut infos = Vec::with_capacity(count);
    let mut data = Vec::with_capacity(count);
    for (index, Picture { info, data: bytes }) in pictures.pictures.into_iter().enumerate() {
        let mut info = info.ok_or_else(|| format!("picture {index} has no info"))?;
        if info.index as usize != index {
            return Err(format!("picture {} stands at place {index}", info.index));
        }
        if bytes.is_empty()
            || info.width == 0
            || info.height == 0
            || info.format() == ImageFormat::Unspecified
        {
            return Err(format!("picture {index} is empty, or has no size or format"));
        }
        let digest = hex::encode(Sha256::digest(&bytes));
        if info.sha256 != digest {
            return Err(format!("picture {index} is not the one that its digest names"));
        }
        info.size_bytes = bytes.len() as u64;
        infos.push(info);
        data.push(bytes);
    }
    Ok((infos, data))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn served() -> ModelStage {
        ModelStage {
            grid_rows: 2,
            grid_columns: 2,
            codebook_size: 300,
            ..ModelStage::default()
        }
    }

    fn grid(ids: &[u16], shape: &[u64]) -> Tensor {
        let data: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        Tensor {
            element_type: ElementType::U16 as i32,
            shape: shape.to_vec(),
            data: data.into(),
        }
    }

    #[test]
    fn token_grids_must_have_the_stages_shape_and_codebook() {
        assert_eq!(tokens(&grid(&[0, 1, 2, 299], &[1, 4]), &served(), 16), Ok(1));
        assert_eq!(tokens(&grid(&[0; 8], &[2, 4]), &served(), 16), Ok(2));
        for (wrong, word) in [
            (grid(&[0, 1, 2, 300], &[1, 4]), "codebook"),
            (grid(&[0; 4], &[4]), "2 axes"),
            (grid(&[0; 4], &[2, 2]), "is wanted"),
            (grid(&[0; 3], &[1, 4]), "bytes"),
            (grid(&[], &[0, 4]), "is wanted"),
            (grid(&[0; 4], &[u64::MAX, 4]), "is wanted"),
        ] {
            let refused = tokens(&wrong, &served(), 16).unwrap_err();
            assert!(refused.contains(word), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn no_tensor_makes_the_check_fail(element_type: i32, shape: Vec<u64>, data: Vec<u8>) {
            let _ = tokens(&Tensor { element_type, shape, data: data.into() }, &served(), 16);
        }
    }

    #[test]
    fn a_picture_that_is_not_what_its_digest_names_is_refused() {
        let info = ImageInfo {
            format: ImageFormat::Png as i32,
            width: 8,
            height: 8,
            sha256: hex::encode(Sha256::digest(b"picture")),
            ..ImageInfo::default()
        };
        let picture = |data: &'static [u8]| Pictures {
            pictures: vec![Picture {
                info: Some(info.clone()),
                data: Bytes::from_static(data),
            }],
        };
        let (infos, data) = pictures(picture(b"picture"), 16).unwrap();
        assert_eq!((infos[0].size_bytes, data.len()), (7, 1));
        assert!(pictures(picture(b"Picture"), 16).unwrap_err().contains("digest"));
        assert!(pictures(Pictures::default(), 16).is_err());
    }
}
