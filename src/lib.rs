//! GhostServe: an HTTP server that classifies images with GhostNetV2 on ONNX Runtime, on plain CPUs.
//!
//! # The story of a request
//!
//! 1. A connection is accepted and watched ([`server`]); a handler reads the body within its limits and makes one call to
//!    [`service`].
//! 2. The service takes a permit for every image *before* anything is decoded; past the bound the request is shed here.
//! 3. [`preprocess`] turns each file into a row of the network's input, on a bounded number of threads, or into an error
//!    that is about this image alone.
//! 4. [`batch`] queues the row; an idle worker takes what is there, runs the model ([`runtime`]), and sends each row of
//!    scores to whoever waits for it.
//! 5. The service turns scores into predictions, or hands on feature maps; the handler encodes them, or has a [`picture`] drawn. Times are recorded in [`telemetry`] where they
//!    happen.
//!
//! # The story of a model
//!
//! A folder with a [`manifest`], or the one in the binary ([`model`]); [`hub`] makes such folders of published weights. Its
//! architecture is data ([`ghostnet`]); with the folder's [`weights`], read strictly, it is lowered to an ONNX [`graph`],
//! plain or in the runtime's blocked layout, where our own [`kernels`] do what stands between the convolutions. The
//! runtime loads it from memory.
//!
//! `docs/ARCHITECTURE.md` says who may import whom.

pub mod batch;
pub mod cli;
pub mod config;
pub mod cores;
pub mod eval;
pub mod fair_share;
pub mod ghostnet;
pub mod graph;
pub mod hub;
pub mod kernels;
pub mod load;
pub mod manifest;
pub mod memory;
pub mod model;
pub mod picture;
pub mod plan;
pub mod preprocess;
pub mod proto;
pub mod runtime;
pub mod server;
pub mod service;
pub mod telemetry;
pub mod weights;
