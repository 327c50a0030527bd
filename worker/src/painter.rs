//! Pictures from tokens with the bundle's own decoder.

use muse_engine::{
    Bundle, Provider, SessionOptions, Stage,
    picture::{self, EncodeOptions, PictureFormat, Provenance},
    pixels::{ImageDecoder, PixelsError},
};
use muse_proto::{
    internal::v1::Picture,
    v1::{ImageFormat, ImageInfo},
};
use sha2::{Digest as _, Sha256};

use crate::{
    config::Pixels,
    pixels::{Painter, PictureOrder},
};

/// Decodes one grid at a time: a decoder's activations are far larger than a step's, and this way a picture does not depend
/// on its batch.
pub struct BundlePainter {
    bundle: Bundle,
    decoder: ImageDecoder,
    /// The decoder with the threads that it has while passes are computed, where those are others: an operator of many would
    /// wait for cores that the passes' threads are on.
    beside_passes: Option<ImageDecoder>,
    jpeg_quality: u8,
}

impl BundlePainter {
    /// Opens the decoder of `stage`, on `runtime`'s providers with the threads that `pixels` gives it.
    ///
    /// # Errors
    /// When the bundle has none, or it cannot be opened.
    pub fn open(
        bundle: &Bundle,
        stage: Stage,
        runtime: &SessionOptions,
        pixels: &Pixels,
    ) -> Result<Self, PixelsError> {
        let with_threads = |threads| SessionOptions {
            threads,
            ..runtime.clone()
        };
        let (alone, beside) = (
            with_threads(pixels.threads),
            with_threads(pixels.threads_beside_passes),
        );
        let decoder = ImageDecoder::open(bundle, stage, &alone)?;
        let is_other = decoder.provider() == Provider::Cpu && alone.cpu_threads() != beside.cpu_threads();
        let beside_passes = is_other
            .then(|| ImageDecoder::open(bundle, stage, &beside))
            .transpose()?;
        Ok(BundlePainter {
            bundle: bundle.clone(),
            decoder,
            beside_passes,
            jpeg_quality: pixels.jpeg_quality,
        })
    }
}

impl Painter for BundlePainter {
    fn paint(&mut self, order: &PictureOrder, beside_passes: bool) -> Result<Picture, String> {
        let decoder = match &self.beside_passes {
            Some(decoder) if beside_passes => decoder,
            _ => &self.decoder,
        };
        let images = decoder
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
