//! A load tester for any HTTP server that takes an image as its body: it offers a load, closed or open, and reports what
//! came back and how late.
//!
//! A [`Target`] and [`Images`] become an [`Endpoint`], whose requests are bytes ready to be written. [`measure`] offers one
//! [`Load`] to one endpoint and returns a [`Measurement`]; [`campaign()`] runs a [`Plan`] over several endpoints in rounds,
//! and makes the [`Report`].
//!
//! Three rules make the numbers mean something:
//!
//! - In an open loop every latency counts from the moment at which the request was *due*, not from when it could be sent:
//!   a server that stalls cannot make its clients politely stop counting.
//! - Latencies belong to requests that began in the measured window, whenever they ended; rates count the answers that
//!   arrived in the window, whenever they were asked for.
//! - The tester runs beside the server, so it must cost little, and says what it cost: its lag and its processor time.
//!
//! This room knows nothing of the others.

mod arrivals;
mod campaign;
mod client;
mod compare;
mod cpu;
mod endpoint;
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
mod target;

pub use campaign::{Event, Plan, campaign};
pub use compare::{Ratio, median};
pub use endpoint::{Endpoint, RequestStyle};
pub use error::LoadError;
pub use images::Images;
pub use measurement::{Latencies, Measurement};
pub use recorder::ErrorKind;
pub use report::Report;
pub use run::{Load, Progress, Settings, Watch, measure};
pub use target::Target;
