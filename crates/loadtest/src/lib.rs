//! Load generator for inference servers that receive an image per request, over HTTP/1.1 or gRPC. It offers a
//! closed-loop or an open-loop workload and reports throughput, latency percentiles and errors.
//!
//! A [`LoadTarget`] and an [`ImageSet`] become a [`PreparedEndpoint`], which holds its requests as bytes ready to be
//! sent. [`measure`] offers one [`Workload`] to one endpoint and returns a [`RunMeasurement`]. [`run_campaign`]
//! executes a [`CampaignPlan`]: several workloads, several endpoints, several rounds. It returns a
//! [`CampaignReport`].
//!
//! The numbers follow three rules:
//!
//! - In an open loop every latency starts at the moment the request was *due*, also if it was sent later. A server
//!   that stalls delays requests, and the delay counts (no coordinated omission).
//! - Latencies belong to requests that started in the measured window, whenever they ended. Rates count the responses
//!   that arrived in the window, whenever their requests started.
//! - The load generator usually shares the machine with the server. It runs on one thread and reports what it cost:
//!   its sending lag and its processor time.
//!
//! # Example
//!
//! A closed loop of 16 connections against one endpoint, measured for 10 seconds after a warm-up of 2:
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use ghostserve_loadtest::{
//!     ImageSet, LoadTarget, PreparedEndpoint, RequestFormat, RunObserver, RunSettings, Workload, measure,
//! };
//! use tokio_util::sync::CancellationToken;
//!
//! let settings = RunSettings {
//!     duration: Duration::from_secs(10),
//!     warm_up: Duration::from_secs(2),
//!     timeout: Duration::from_secs(10),
//!     slo: Duration::from_millis(100),
//!     max_connections: 1024,
//!     seed: 1,
//!     obey_retry_after: false,
//!     check_json: true,
//! };
//! let target = LoadTarget::parse("http://127.0.0.1:8080/v1/classify")?;
//! let images = ImageSet::built_in();
//!
//! // `measure` needs a current-thread runtime.
//! let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! let measurement = runtime.block_on(async {
//!     let format = RequestFormat::default();
//!     let endpoint = Arc::new(PreparedEndpoint::prepare(target, &images, &format, settings.timeout).await?);
//!     let observer = RunObserver { on_progress: &|_| (), stop: CancellationToken::new() };
//!     measure(&endpoint, Workload::ClosedLoop { connections: 16 }, &settings, &observer).await
//! })?;
//!
//! println!("{:.1} images/s, p99 {:?}", measurement.throughput(), measurement.success.percentile(99.0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod arrivals;
mod campaign;
mod client;
mod compare;
mod cpu;
mod endpoint;
mod environment;
mod error;
mod grpc;
mod images;
mod measurement;
mod open;
mod recorder;
pub mod report;
mod response;
mod run;
mod sample_image;
mod search;
mod server_info;
mod target;

pub use campaign::{CampaignEvent, CampaignPlan, run_campaign};
pub use compare::{StatisticRatio, median};
pub use endpoint::{PreparedEndpoint, RequestFormat};
pub use environment::{Environment, Machine, command_without_credentials};
pub use error::LoadTestError;
pub use images::ImageSet;
pub use measurement::{LatencyHistogram, RunMeasurement};
pub use recorder::RequestErrorKind;
pub use report::CampaignReport;
pub use run::{RunObserver, RunProgress, RunSettings, Workload, measure};
pub use server_info::{ServedModel, ServerInfo};
pub use target::{LoadTarget, TargetProtocol};
