//! Compiles `proto/` into Rust. protox is a protobuf compiler in Rust, so the build needs no `protoc`.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = "../../proto";
    println!("cargo::rerun-if-changed={folder}");
    let services = ["ghostserve/v1/inference.proto", "inference/inference.proto"];
    let services = protox::compile(services, [folder])?;
    // For gRPC server reflection.
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    std::fs::write(out.join("services.bin"), services.encode_to_vec())?;
    tonic_prost_build::configure()
        // Images and tensors share the connection's buffer and are not copied.
        .bytes(".")
        .codec_path("crate::codec::OffloadingCodec")
        .compile_fds(services)?;
    Ok(())
}
