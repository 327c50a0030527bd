//! The types and services generated from `proto/muse`. Conversions live with the crates that need them; here is only what
//! makes a well-known type safe to read ([`std_duration`]).
//!
//! [`v1`] is the public API, kept compatible; [`internal`] is between our own services, which may differ by one release.

mod duration;

pub use duration::std_duration;

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
