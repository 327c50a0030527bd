//! The names of all methods. A name that a peer made up must not become a label of a metric.

use std::{collections::BTreeSet, sync::Arc};

use prost::{DecodeError, Message as _};
use prost_types::FileDescriptorSet;

/// For reflection and for the names.
pub(super) const DESCRIPTOR_SETS: [&[u8]; 4] = [
    muse_proto::FILE_DESCRIPTOR_SET,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

/// On every port.
pub(super) const COMMON_SERVICES: [&str; 3] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// What a method that we do not know is called.
pub(super) const OTHER: &str = "other";

/// `/package.Service/Method` of every method that any of our ports may have.
pub(super) type Known = Arc<BTreeSet<Arc<str>>>;

/// Reads the names out of the descriptors.
///
/// # Errors
/// Only when the build went wrong.
pub(super) fn known() -> Result<Known, DecodeError> {
    let mut names = BTreeSet::new();
    for encoded in DESCRIPTOR_SETS {
        for file in FileDescriptorSet::decode(encoded)?.file {
            for service in &file.service {
                for method in &service.method {
                    let name = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    names.insert(Arc::from(name));
                }
            }
        }
    }
    Ok(Arc::new(names))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_methods_and_those_of_every_port_are_known() {
        let known = known().unwrap();
        for name in [
            "/muse.v1.Generation/Generate",
            "/muse.internal.v1.TextEncoder/Embed",
            "/grpc.health.v1.Health/Check",
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ] {
            assert!(known.contains(name), "{name} is not among {known:?}");
        }
    }
}
