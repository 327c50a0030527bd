//! From tokens to pixels: the VQGAN decoder (Muse §2.2). Always f32.

pub use image::RgbImage;

use crate::bundle::{Bundle, BundleError, BundleFault, MANIFEST, Stage, StageSpec};
use crate::runtime::signature::{Dimension, Signature, TensorSignature};
use crate::runtime::{Element, Provider, RuntimeError, Session, SessionOptions};

const CHANNELS: usize = 3;

/// A stage's image decoder, opened.
#[derive(Debug)]
pub struct ImageDecoder {
    session: Session,
    spec: StageSpec,
}

/// Why tokens do not become pixels.
#[derive(Debug, thiserror::Error)]
pub enum PixelsError {
    /// The stage has no decoder, or its graph is not what the bundle says.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// ONNX Runtime failed.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A grid has the wrong size, or a token outside of the codebook (a masked position, say).
    #[error("grid {index} does not fit the image decoder: {reason}")]
    Grid {
        /// Index into the grids.
        index: usize,
        /// What is wrong.
        reason: String,
    },
    /// The decoder gave NaN or infinity.
    #[error("the image decoder gave values that are not finite for grid {index}")]
    NotFinite {
        /// Index into the grids.
        index: usize,
    },
}

// === impl ImageDecoder ===

impl ImageDecoder {
    /// Opens the decoder of `stage` and checks its input and output.
    pub fn open(
        bundle: &Bundle,
        stage: Stage,
        options: &SessionOptions,
    ) -> Result<ImageDecoder, PixelsError> {
        let missing = |what: &str| bundle.fault(MANIFEST, BundleFault::Manifest(format!("has no {what}")));
        let spec = bundle
            .stage(stage)
            .ok_or_else(|| missing(&format!("stage [{stage}]")))?;
        let file = spec
            .decoder
            .as_deref()
            .ok_or_else(|| missing(&format!("{stage}.decoder")))?;
        let size = spec.image_size;
        let image = [
            Dimension::Batch,
            Dimension::Fixed(CHANNELS),
            Dimension::Fixed(size.height as usize),
            Dimension::Fixed(size.width as usize),
        ];
        let tokens = [Dimension::Batch, Dimension::Fixed(spec.positions())];
        let signature = Signature {
            inputs: vec![TensorSignature::new("tokens", Element::I64, tokens)],
            outputs: Some(vec![TensorSignature::new("image", Element::F32, image)]),
        };
        let session = Session::open(bundle, file, options)?;
        session.check(bundle, &signature)?;
        Ok(ImageDecoder {
            session,
            spec: spec.clone(),
        })
    }

    /// What the decoder runs on.
    pub fn provider(&self) -> Provider {
        self.session.provider()
    }

    /// Decodes one grid of zeros: a device loads what the graph needs when it first runs, which no picture should wait for.
    pub fn warm_up(&self) -> Result<(), PixelsError> {
        let zeros = vec![0; self.spec.positions()];
        self.decode(&[&zeros]).map(drop)
    }

    /// One picture for each grid `[S]`, in one pass: the caller bounds the number. Threads that call it at once share the CPU;
    /// on other providers they take turns.
    pub fn decode(&self, grids: &[&[u32]]) -> Result<Vec<RgbImage>, PixelsError> {
        if grids.is_empty() {
            return Ok(Vec::new());
        }
        let positions = self.spec.positions();
        for (index, grid) in grids.iter().enumerate() {
            if grid.len() != positions {
                return Err(PixelsError::Grid {
                    index,
                    reason: format!("{} positions instead of {positions}", grid.len()),
                });
            }
            if let Some(token) = grid.iter().find(|token| **token >= self.spec.codebook_size) {
                let size = self.spec.codebook_size;
                return Err(PixelsError::Grid {
                    index,
                    reason: format!("token {token} is not below the codebook's size {size}"),
                });
            }
        }
        let tokens: Vec<i64> = grids
            .iter()
            .copied()
            .flatten()
            .map(|token| i64::from(*token))
            .collect();
        let size = self.spec.image_size;
        let (height, width) = (size.height as usize, size.width as usize);
        let shape = [grids.len(), CHANNELS, height, width];
        self.session.run(
            &[Session::input("tokens", &[grids.len(), positions], &tokens)?],
            |outputs| {
                let values = outputs.f32("image", &shape)?;
                let mut images = Vec::with_capacity(grids.len());
                for (index, planes) in values.chunks_exact(CHANNELS * height * width).enumerate() {
                    let image =
                        to_image(planes, size.width, size.height).ok_or(PixelsError::NotFinite { index })?;
                    images.push(image);
                }
                Ok(images)
            },
        )
    }
}

/// f32 `[3, H, W]` in 0…1 (clipped) to 8-bit RGB; `None` if a value is not finite.
fn to_image(planes: &[f32], width: u32, height: u32) -> Option<RgbImage> {
    if planes.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let pixels = planes.len() / CHANNELS;
    let (red, rest) = planes.split_at(pixels);
    let (green, blue) = rest.split_at(pixels);
    let byte = |value: f32| (value.clamp(0.0, 1.0) * 255.0).round() as u8;
    let bytes = red
        .iter()
        .zip(green)
        .zip(blue)
        .flat_map(|((red, green), blue)| [byte(*red), byte(*green), byte(*blue)])
        .collect();
    RgbImage::from_raw(width, height, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_become_pixels_clipped_and_rounded() {
        let image = to_image(&[0.0, 1.0, 0.5, 2.0, 0.2, -1.0], 2, 1).unwrap();
        assert_eq!(image.into_raw(), [0, 128, 51, 255, 255, 0]);
    }

    #[test]
    fn a_value_that_is_not_finite_is_refused() {
        assert_eq!(to_image(&[0.0, f32::NAN, 0.0], 1, 1), None);
    }
}
