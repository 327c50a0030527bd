//! Pictures from tokens with the bundle's own decoder.

use muse_engine::{
    Bundle, SessionOptions, Stage,
    picture::{self, EncodeOptions, PictureFormat, Provenance},
    pixels::{ImageDecoder, PixelsError},
};
use muse_proto::{
    internal::v1::Picture,
    v1::{ImageFormat, ImageInfo},
};
use sha2::{Digest as _, Sha256};

use crate::pixels::{Painter, PictureOrder};

/// Decodes one grid at a time: a decoder's activations are far larger than a step's, and this way a picture does not depend
/// on its batch.
pub struct BundlePainter {
    bundle: Bundle,
    decoder: ImageDecoder,
    jpeg_quality: u8,
}

impl BundlePainter {
    /// Opens the decoder of `stage`.
    ///
    /// # Errors
    /// When the bundle has none, or it cannot be opened.
    pub fn open(
        bundle: &Bundle,
        stage: Stage,
        options: &SessionOptions,
        jpeg_quality: u8,
    ) -> Result<Self, PixelsError> {
        let decoder = ImageDecoder::open(bundle, stage, options)?;
        Ok(BundlePainter {
            bundle: bundle.clone(),
            decoder,
            jpeg_quality,
        })
    }
}

impl BundlePainter {
    /// See [`ImageDecoder::warm_up`].
    ///
    /// # Errors
    /// When the decoder cannot run.
    pub fn warm_up(&self) -> Result<(), PixelsError> {
        self.decoder.warm_up()
    }
}

impl Painter for BundlePainter {
    fn paint(&mut self, order: &PictureOrder) -> Result<Picture, String> {
        let images = self
            .decoder
            .decode(&[&order.tokens])
            .map_err(|error| error.to_string())?;
        let image = images.first().ok_or("the decoder gave no picture")?;
        let (format, wire_format) = match order.format {
            ImageFormat::Unspecified | ImageFormat::Png => (PictureFormat::Png, ImageFormat::Png),
            ImageFormat::Webp => (PictureFormat::Webp, ImageFormat::Webp),
            ImageFormat::Jpeg => (PictureFormat::Jpeg, ImageFormat::Jpeg),
        };
        let options = EncodeOptions {
            format,
            jpeg_quality: self.jpeg_quality,
        };
        let provenance = Provenance::new(&self.bundle, order.seed, order.index);
        let data = picture::encode(image, options, &provenance).map_err(|error| error.to_string())?;
        let info = ImageInfo {
            index: order.index,
            format: wire_format as i32,
            width: image.width(),
            height: image.height(),
            size_bytes: data.len() as u64,
            sha256: hex::encode(Sha256::digest(&data)),
        };
        Ok(Picture {
            info: Some(info),
            data: data.into(),
        })
    }
}
