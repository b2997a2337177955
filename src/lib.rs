//! GhostServe: an HTTP and gRPC server that classifies images with GhostNetV2 on ONNX Runtime, on plain CPUs.
//!
//! # A request
//!
//! 1. [`server`] accepts a connection, enforces its timeouts, and routes the request to a handler. The handler plans
//!    the request, reads its body within the limits, and calls [`service`].
//! 2. [`service`] acquires a permit for every image before it decodes any. Requests beyond the limits are rejected.
//! 3. [`preprocess`] decodes each image, resizes it and crops it to the size of the model's input. One bad image is an
//!    error of that image alone.
//! 4. [`batch`] queues the crops. An idle worker takes the waiting ones as one batch and runs the model ([`runtime`]).
//! 5. [`service`] turns scores into predictions, or returns feature maps. The handler encodes the answer. [`telemetry`]
//!    records times where they occur.
//!
//! # A model
//!
//! A model folder holds a manifest ([`ghostserve_manifest`]), labels and weights. [`model`] loads it: a network of
//! [`ghostserve_ghostnet`] with the values of [`ghostserve_weights`] becomes an ONNX graph, plain or in ONNX Runtime's
//! blocked layout, where [`ghostserve_kernels`] computes the operators between the convolutions. [`runtime`] opens
//! sessions for the graph. [`ghostserve_hub`] makes model folders from published weights, [`init`] from files of the
//! user's own.
//!
//! `docs/ARCHITECTURE.md` lists which module may import which. `tests/integration/imports.rs` checks it.

pub mod batch;
pub mod cli;
pub mod config;
pub mod cores;
pub mod eval;
pub mod fair_share;
pub mod heatmap;
pub mod init;
pub mod memory;
pub mod model;
pub mod plan;
pub mod preprocess;
pub mod row;
pub mod runtime;
pub mod server;
pub mod service;
pub mod softmax;
pub mod telemetry;
pub(crate) mod text;
