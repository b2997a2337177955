//! Compiles `proto/onnx.proto` into Rust. protox is a protobuf compiler in Rust, so the build needs no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let onnx = protox::compile(["onnx.proto"], ["proto"])?;
    prost_build::Config::new()
        // As `Bytes`, tensor data is moved into the model and not copied.
        .bytes([".onnx.TensorProto.raw_data"])
        .compile_fds(onnx)?;
    Ok(())
}
