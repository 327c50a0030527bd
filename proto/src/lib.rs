//! The types and services generated from `proto/muse`, and nothing else: conversions live with the crates that need them.
//!
//! [`v1`] is the public API, kept compatible; [`internal`] is between our own services, which may differ by one release.

/// The public API, `muse.v1`.
#[allow(missing_docs, reason = "generated; the docs are comments in the .proto files")]
#[allow(clippy::all, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("muse.v1");
}

/// Between Muse Serve's own services, `muse.internal.v1`.
pub mod internal {
    /// Version 1.
    #[allow(missing_docs, reason = "generated; the docs are comments in the .proto files")]
    #[allow(clippy::all, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("muse.internal.v1");
    }
}

/// Every message and service above as an encoded `FileDescriptorSet`, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/muse_descriptors.bin"));
