//! PNG, with the standard text keywords beside the XMP chunk.

use image::RgbImage;

use super::{PictureError, PictureFormat, Provenance, SOFTWARE};

/// Keyword of the XMP chunk.
const XMP_KEYWORD: &str = "XML:com.adobe.xmp";

pub(super) fn encode(image: &RgbImage, xmp: &str, provenance: &Provenance) -> Result<Vec<u8>, PictureError> {
    write(image, xmp, provenance).map_err(|error| PictureError::Encode {
        format: PictureFormat::Png,
        reason: error.to_string(),
    })
}

fn write(image: &RgbImage, xmp: &str, provenance: &Provenance) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.add_itxt_chunk(XMP_KEYWORD.to_owned(), xmp.to_owned())?;
    let Provenance { model, version, .. } = provenance;
    for (keyword, text) in [
        ("Software", SOFTWARE.to_owned()),
        ("Source", format!("{model} {version}")),
        ("Disclaimer", "AI generated".to_owned()),
    ] {
        // International text, because a model's version may hold any character.
        encoder.add_itxt_chunk(keyword.to_owned(), text)?;
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}
