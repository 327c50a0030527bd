//! Compiles the protos in Rust (protox), so that nobody needs a protoc, and writes the descriptor set that reflection serves.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const PROTOS: [&str; 6] = [
    "muse/v1/job.proto",
    "muse/v1/generation.proto",
    "muse/v1/models.proto",
    "muse/v1/admin.proto",
    "muse/internal/v1/text_encoder.proto",
    "muse/internal/v1/worker_hub.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=muse");
    let descriptors = protox::compile(PROTOS, ["."])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("muse_descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        // Tensors and pictures are passed on without a copy.
        .bytes(".muse.internal.v1.Tensor.data")
        .bytes(".muse.internal.v1.Picture.data")
        .bytes(".muse.v1.Image.data")
        .compile_fds(descriptors)?;
    Ok(())
}
