//! Compiles `proto/onnx.proto` into Rust. protox is a protobuf compiler written in Rust, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let onnx = protox::compile(["onnx.proto"], ["proto"])?;
    prost_build::Config::new()
        // Tensor data is moved, not copied, when a model is assembled.
        .bytes([".onnx.TensorProto.raw_data"])
        .compile_fds(onnx)?;
    Ok(())
}
