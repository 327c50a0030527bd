//! Encodes pictures, and writes into them where they come from.
//!
//! The provenance stands in the standard fields: XMP in every format (with IPTC's digital source type "trained algorithmic
//! media", which marks a picture as AI generated), and PNG's text chunks. Prompts are only written when asked for.

mod jpeg;
mod png;
mod webp;
mod xmp;

use std::fmt;
use std::str::FromStr;

use image::RgbImage;
use serde::{Deserialize, Serialize};

/// The name and version that are recorded as the software.
pub const SOFTWARE: &str = concat!("Muse Serve ", env!("CARGO_PKG_VERSION"));

/// File format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PictureFormat {
    /// Lossless.
    #[default]
    Png,
    /// Lossless WebP.
    Webp,
    /// Lossy.
    Jpeg,
}

/// How to encode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EncodeOptions {
    /// File format.
    pub format: PictureFormat,
    /// 1 to 100, for JPEG alone.
    pub jpeg_quality: u8,
}

/// Where a picture comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// The bundle's model name.
    pub model: String,
    /// The bundle's model version.
    pub version: String,
    /// SHA-256 of the bundle's manifest, hexadecimal.
    pub bundle_digest: String,
    /// The request's seed.
    pub seed: u64,
    /// Which of the request's pictures.
    pub image_index: u32,
    /// The prompt, only where its author asked to have it in the file.
    pub prompt: Option<String>,
}

/// Why a picture cannot be encoded.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// The format's encoder failed.
    #[error("the picture cannot be encoded as {format}: {reason}")]
    Encode {
        /// The format.
        format: PictureFormat,
        /// The encoder's words.
        reason: String,
    },
    /// The provenance does not fit the format.
    #[error(
        "the picture's metadata has {found} bytes, but {format} holds at most {limit}; leave the prompt out of the file"
    )]
    MetadataTooLarge {
        /// The format.
        format: PictureFormat,
        /// Bytes of XMP.
        found: usize,
        /// Most bytes of XMP.
        limit: usize,
    },
}

/// Encodes `image` with its provenance.
pub fn encode(
    image: &RgbImage,
    options: EncodeOptions,
    provenance: &Provenance,
) -> Result<Vec<u8>, PictureError> {
    let xmp = xmp::packet(provenance);
    match options.format {
        PictureFormat::Png => png::encode(image, &xmp, provenance),
        PictureFormat::Webp => webp::encode(image, &xmp),
        PictureFormat::Jpeg => jpeg::encode(image, &xmp, options.jpeg_quality),
    }
}

// === impl EncodeOptions ===

impl Default for EncodeOptions {
    fn default() -> EncodeOptions {
        EncodeOptions {
            format: PictureFormat::default(),
            jpeg_quality: 92,
        }
    }
}

// === impl PictureFormat ===

impl PictureFormat {
    /// Every format.
    pub const ALL: [PictureFormat; 3] = [PictureFormat::Png, PictureFormat::Webp, PictureFormat::Jpeg];

    /// `png`, `webp` or `jpeg`.
    pub fn as_str(self) -> &'static str {
        match self {
            PictureFormat::Png => "png",
            PictureFormat::Webp => "webp",
            PictureFormat::Jpeg => "jpeg",
        }
    }

    /// The media type.
    pub fn media_type(self) -> &'static str {
        match self {
            PictureFormat::Png => "image/png",
            PictureFormat::Webp => "image/webp",
            PictureFormat::Jpeg => "image/jpeg",
        }
    }
}

impl fmt::Display for PictureFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for PictureFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<PictureFormat, String> {
        match text.to_ascii_lowercase().as_str() {
            "png" => Ok(PictureFormat::Png),
            "webp" => Ok(PictureFormat::Webp),
            "jpeg" | "jpg" => Ok(PictureFormat::Jpeg),
            _ => Err(format!("\"{text}\" is no picture format; use png, webp or jpeg")),
        }
    }
}

// === impl Provenance ===

impl Provenance {
    /// The provenance of picture `image_index` of a request on `bundle`, without the prompt.
    pub fn new(bundle: &crate::bundle::Bundle, seed: u64, image_index: u32) -> Provenance {
        Provenance {
            model: bundle.model().name.clone(),
            version: bundle.model().version.clone(),
            bundle_digest: bundle.digest().to_owned(),
            seed,
            image_index,
            prompt: None,
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
