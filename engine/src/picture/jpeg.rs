//! JPEG with XMP in an APP1 segment, which the encoder library cannot write itself.

use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;

use super::{PictureError, PictureFormat};

const START_OF_IMAGE: [u8; 2] = [0xff, 0xd8];
const APP1: [u8; 2] = [0xff, 0xe1];
/// Marks an APP1 segment as XMP (XMP specification part 3).
const XMP_NAMESPACE: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
/// A segment's length is 16 bits and counts itself.
const XMP_LIMIT: usize = 0xffff - 2 - XMP_NAMESPACE.len();

pub(super) fn encode(image: &RgbImage, xmp: &str, quality: u8) -> Result<Vec<u8>, PictureError> {
    if xmp.len() > XMP_LIMIT {
        return Err(PictureError::MetadataTooLarge {
            format: PictureFormat::Jpeg,
            found: xmp.len(),
            limit: XMP_LIMIT,
        });
    }
    let failed = |reason: String| PictureError::Encode {
        format: PictureFormat::Jpeg,
        reason,
    };
    let mut encoded = Vec::new();
    JpegEncoder::new_with_quality(&mut encoded, quality.clamp(1, 100))
        .encode_image(image)
        .map_err(|error| failed(error.to_string()))?;
    let rest = encoded
        .strip_prefix(&START_OF_IMAGE)
        .ok_or_else(|| failed("the encoder wrote no start-of-image marker".to_owned()))?;
    let length = 2 + XMP_NAMESPACE.len() + xmp.len();
    // JFIF wants its APP0 segment first; anything may follow it.
    let jfif = match rest {
        [0xff, 0xe0, high, low, ..] => 2 + usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    };
    let (jfif, rest) = rest
        .split_at_checked(jfif)
        .ok_or_else(|| failed("its first segment is cut off".to_owned()))?;
    let length = [(length >> 8) as u8, length as u8];
    Ok([
        &START_OF_IMAGE,
        jfif,
        &APP1,
        &length,
        XMP_NAMESPACE,
        xmp.as_bytes(),
        rest,
    ]
    .concat())
}
