//! The gRPC services of `proto/` in Rust: the messages, and for each service a client and a trait for servers. The
//! build script generates the code.

pub mod codec;

/// GhostServe's own service.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, unused_qualifications)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/ghostserve.v1.rs"));
}

/// The Open Inference Protocol.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, unused_qualifications)]
pub mod inference {
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));
}

/// Both services as a serialised `FileDescriptorSet`, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/services.bin"));
