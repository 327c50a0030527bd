//! Lossless WebP with an XMP chunk.

use image::RgbImage;
use image_webp::{ColorType, WebPEncoder};

use super::{PictureError, PictureFormat};

pub(super) fn encode(image: &RgbImage, xmp: &str) -> Result<Vec<u8>, PictureError> {
    let mut bytes = Vec::new();
    let mut encoder = WebPEncoder::new(&mut bytes);
    encoder.set_xmp_metadata(xmp.as_bytes().to_vec());
    encoder
        .encode(image.as_raw(), image.width(), image.height(), ColorType::Rgb8)
        .map_err(|error| PictureError::Encode {
            format: PictureFormat::Webp,
            reason: error.to_string(),
        })?;
    Ok(bytes)
}
