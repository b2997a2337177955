//! Compiles `proto/` into Rust. protox is a protobuf compiler written in Rust, so that no `protoc` is needed.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-env-changed=GHOSTSERVE_BUILD_REVISION");
    let onnx = protox::compile(["proto/onnx.proto"], ["proto"])?;
    prost_build::Config::new()
        // A tensor's bytes are moved, not copied, when a model is put together.
        .bytes([".onnx.TensorProto.raw_data"])
        .compile_fds(onnx)?;

    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let services = ["proto/ghostserve/v1/inference.proto", "proto/inference/inference.proto"];
    let services = protox::compile(services, ["proto"])?;
    // For those who ask the server what it speaks.
    std::fs::write(out.join("services.bin"), services.encode_to_vec())?;
    tonic_prost_build::configure()
        // Images stay where the connection's buffer has them, tensors where they were written.
        .bytes(".")
        .codec_path("crate::proto::codec::OffloadingCodec")
        .compile_fds(services)?;
    Ok(())
}
