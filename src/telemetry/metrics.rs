//! Every metric of the server, in one struct. The doc comment of a field is its help text on `/metrics`.
//!
//! Label values come from fixed sets only: route patterns, status codes, error codes, stages, names of loaded models.

use std::time::{Duration, Instant};

use prometheus::core::Collector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use super::spans;

/// Declares a struct of metrics, and a constructor that registers each under `ghostserve_` and its field's name.
macro_rules! metrics {
    ($(#[$outer:meta])* pub struct $name:ident { $( $(#[doc = $help:literal])+ $field:ident: $kind:ident $(<$($label:literal),+>)? $(= $buckets:expr)?, )+ }) => {
        $(#[$outer])*
        #[derive(Debug)]
        pub struct $name { $( $(#[doc = $help])+ pub $field: $kind, )+ registry: Registry }

        impl $name {
            fn register() -> prometheus::Result<Self> {
                let registry = Registry::new();
                $(
                    let name = concat!("ghostserve_", stringify!($field));
                    let help = [$($help),+].concat().trim().to_owned();
                    let labels: &[&str] = &[$($($label),+)?];
                    let buckets: &[f64] = metrics!(@buckets $($buckets)?);
                    let $field: $kind = Metric::make(name, help, labels, buckets)?;
                    registry.register(Box::new($field.clone()))?;
                )+
                Ok(Self { $($field,)+ registry })
            }
        }
    };
    (@buckets) => { &[] };
    (@buckets $buckets:expr) => { $buckets };
}

/// A kind of metric that [`metrics!`] can make.
trait Metric: Collector + Clone + Sized + 'static {
    fn make(name: &str, help: String, labels: &[&str], buckets: &[f64]) -> prometheus::Result<Self>;
}

macro_rules! metric_kinds {
    ($($kind:ty: |$opts:ident, $labels:ident, $buckets:ident| $make:expr;)+) => {$(
        impl Metric for $kind {
            fn make(name: &str, help: String, $labels: &[&str], $buckets: &[f64]) -> prometheus::Result<Self> {
                let $opts = Opts::new(name, help);
                $make
            }
        }
    )+};
}

metric_kinds! {
    IntCounter: |opts, _labels, _buckets| Self::with_opts(opts);
    IntGauge: |opts, _labels, _buckets| Self::with_opts(opts);
    IntCounterVec: |opts, labels, _buckets| Self::new(opts, labels);
    IntGaugeVec: |opts, labels, _buckets| Self::new(opts, labels);
    GaugeVec: |opts, labels, _buckets| Self::new(opts, labels);
    HistogramVec: |opts, labels, buckets| Self::new(HistogramOpts::from(opts).buckets(buckets.to_vec()), labels);
}

/// 0.1 ms to 10 s: the fastest stage to the longest request.
const SECONDS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const BATCH_SIZES: &[f64] = &[1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0];

metrics! {
    /// The server's metrics. Cheap to record; cloned handles share their values.
    pub struct Metrics {
        /// HTTP requests answered, by route pattern and status.
        http_requests_total: IntCounterVec<"route", "status">,
        /// Seconds from the head of a request to the end of its handling, by route pattern.
        http_request_duration_seconds: HistogramVec<"route"> = SECONDS,
        /// HTTP requests being handled.
        http_requests_in_flight: IntGauge,
        /// gRPC calls that are over, by method and status.
        grpc_requests_total: IntCounterVec<"method", "code">,
        /// Seconds from the head of a call to the end of its answer, by method; streams last as long as their clients like.
        grpc_request_duration_seconds: HistogramVec<"method"> = SECONDS,
        /// gRPC calls being handled.
        grpc_requests_in_flight: IntGauge,
        /// Open connections.
        http_connections: IntGauge,
        /// Connections closed because the client was too slow or idle, by phase: header, idle, response (it took an answer too
        /// slowly).
        http_connection_timeouts_total: IntCounterVec<"phase">,
        /// Error answers, by code: each refused request counts once. Shows every bound that bites.
        problems_total: IntCounterVec<"code">,
        /// Images, by model and outcome: ok, or the code of the error.
        images_total: IntCounterVec<"model", "outcome">,
        /// Seconds spent in a stage of a request: read, decode, resize, queue, infer, encode, total.
        stage_duration_seconds: HistogramVec<"stage"> = SECONDS,
        /// Bytes of request bodies in memory.
        body_bytes: IntGauge,
        /// Requests and connections refused because one client address held its share, by resource: connections, requests, body_bytes,
        /// feature_bytes, large_images. Other clients were served.
        client_share_refusals_total: IntCounterVec<"resource">,
        /// Images a run of the model took at once.
        batch_size: HistogramVec<"model"> = BATCH_SIZES,
        /// Images waiting for a worker.
        queue_depth: IntGaugeVec<"model">,
        /// Images admitted and not yet answered: being decoded, waiting or running.
        images_in_flight: IntGaugeVec<"model">,
        /// Images admitted at most at once.
        images_capacity: IntGaugeVec<"model">,
        /// Images admitted and then dropped, by reason: cancelled (the client went away), expired (its deadline passed); and by
        /// the stage they had reached: decode, queue, infer.
        images_dropped_total: IntCounterVec<"model", "reason", "stage">,
        /// Images refused at admission, by reason: images (as many are in flight as may be), wait (the predicted wait is
        /// longer than anybody is made to wait), deadline (the predicted wait is longer than the request's own deadline), memory (feature
        /// maps of all requests take what they may).
        images_shed_total: IntCounterVec<"model", "reason">,
        /// Seconds that an image admitted now would wait for a core, by what is in flight and what an image costs: the signal
        /// to scale by.
        predicted_wait_seconds: GaugeVec<"model">,
        /// Images looked up among the remembered ones, by model and outcome: hit, coalesced (another request was working on the same
        /// file), miss. Only with --response-cache.
        response_cache_total: IntCounterVec<"model", "outcome">,
        /// Sessions made for other input sizes or outputs than the classifier's; if it keeps growing, --feature-sessions is too small
        /// for what clients ask for.
        sessions_opened_total: IntCounterVec<"model">,
        /// Bytes that feature maps, their images and answers take in memory.
        feature_bytes: IntGauge,
        /// Threads that decode or run the model at this moment: at most a quarter more than cores.
        cores_busy: IntGauge,
        /// Cores that may.
        cores: IntGauge,
        /// Requests whose client went away before the answer, by route pattern.
        http_requests_abandoned_total: IntCounterVec<"route">,
        /// Workers that can take a batch.
        workers_ready: IntGaugeVec<"model">,
        /// Times a worker had to load its model again after a failure.
        worker_restarts_total: IntCounterVec<"model">,
        /// Images on which a decoder panicked. The image is refused, nothing else is lost; worth reporting all the same.
        decoder_panics_total: IntCounter,
        /// Always 1; labels tell which model is served.
        model_info: IntGaugeVec<"model", "digest", "architecture">,
        /// Always 1; labels tell how a model is run.
        plan_info: IntGaugeVec<"model", "provider", "precision", "graph", "workers", "threads_per_worker", "max_batch">,
        /// Always 1; labels tell what is running.
        build_info: IntGaugeVec<"version", "revision", "onnxruntime">,
    }
}

/// The stages a request goes through; the names are those of the `Server-Timing` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The body arrives.
    Read,
    /// Header and pixels.
    Decode,
    /// Resize, crop, normalisation.
    Resize,
    /// Waiting for a worker.
    Queue,
    /// The model runs.
    Infer,
    /// The answer is written.
    Encode,
    /// All of it.
    Total,
}

impl Stage {
    /// Its name in metrics and headers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Decode => "decode",
            Self::Resize => "resize",
            Self::Queue => "queue",
            Self::Infer => "infer",
            Self::Encode => "encode",
            Self::Total => "total",
        }
    }
}

impl Metrics {
    /// A fresh set, all zero, with the process's own (`process_*`) beside it.
    ///
    /// # Errors
    /// Two metrics of one name: a mistake in this file.
    pub fn new() -> prometheus::Result<Self> {
        let metrics = Self::register()?;
        #[cfg(target_os = "linux")]
        metrics.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(metrics)
    }

    /// Records the time a stage took.
    pub fn stage(&self, stage: Stage, took: Duration) {
        self.stage_duration_seconds.with_label_values(&[stage.name()]).observe(took.as_secs_f64());
    }

    /// Begins a stage that is timed here and now; its span is a part of the current one.
    pub(crate) fn begin(&self, stage: Stage) -> Timing<'_> {
        Timing { metrics: self, stage, start: Instant::now(), _span: spans::stage(stage) }
    }

    /// The Prometheus text format.
    ///
    /// # Errors
    /// A metric without values or a name: a mistake in this file.
    pub fn render(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// The handles that the batching of one model records on.
    #[must_use]
    pub fn for_model(&self, model: &str) -> ModelMetrics {
        let stage = |stage: Stage| self.stage_duration_seconds.with_label_values(&[stage.name()]);
        let dropped = |reason| {
            let counter = |stage: Stage| self.images_dropped_total.with_label_values(&[model, reason, stage.name()]);
            [counter(Stage::Decode), counter(Stage::Queue), counter(Stage::Infer)]
        };
        ModelMetrics {
            queue_depth: self.queue_depth.with_label_values(&[model]),
            in_flight: self.images_in_flight.with_label_values(&[model]),
            capacity: self.images_capacity.with_label_values(&[model]),
            batch_size: self.batch_size.with_label_values(&[model]),
            queued: stage(Stage::Queue),
            infer: stage(Stage::Infer),
            cancelled: dropped("cancelled"),
            expired: dropped("expired"),
            workers_ready: self.workers_ready.with_label_values(&[model]),
            restarts: self.worker_restarts_total.with_label_values(&[model]),
            opened: self.sessions_opened_total.with_label_values(&[model]),
        }
    }
}

/// A stage that is going on. One that is dropped before its end is not recorded.
pub(crate) struct Timing<'m> {
    metrics: &'m Metrics,
    stage: Stage,
    start: Instant,
    _span: tracing::Span,
}

impl Timing<'_> {
    /// Records the time it took.
    pub(crate) fn end(self) -> Duration {
        let took = self.start.elapsed();
        self.metrics.stage(self.stage, took);
        took
    }
}

/// What [`crate::batch`] records for one model.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct ModelMetrics {
    pub queue_depth: IntGauge,
    pub in_flight: IntGauge,
    pub capacity: IntGauge,
    pub batch_size: Histogram,
    pub queued: Histogram,
    pub infer: Histogram,
    /// By stage: decode, queue, infer.
    pub cancelled: [IntCounter; 3],
    pub expired: [IntCounter; 3],
    pub workers_ready: IntGauge,
    pub restarts: IntCounter,
    pub opened: IntCounter,
}

impl ModelMetrics {
    /// The counter of images that were dropped in a stage because their client left, or their deadline passed.
    pub(crate) fn dropped(&self, why: Dropped, stage: Stage) -> &IntCounter {
        let counters = match why {
            Dropped::Cancelled => &self.cancelled,
            Dropped::Expired => &self.expired,
        };
        match stage {
            Stage::Queue => &counters[1],
            Stage::Infer => &counters[2],
            _ => &counters[0],
        }
    }
}

/// Why an image that was admitted was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// Its client went away.
    Cancelled,
    /// Its deadline passed.
    Expired,
}

/// Raises a gauge while it lives, so that no path can forget to lower it.
#[derive(Debug)]
pub struct GaugeGuard {
    gauge: IntGauge,
    by: i64,
}

impl GaugeGuard {
    /// Raises `gauge` by one.
    #[must_use]
    pub fn one(gauge: &IntGauge) -> Self {
        Self::by(gauge, 1)
    }

    /// Raises `gauge` by an amount.
    #[must_use]
    pub fn by(gauge: &IntGauge, by: i64) -> Self {
        gauge.add(by);
        Self { gauge: gauge.clone(), by }
    }
}

impl GaugeGuard {
    /// Raises the gauge further.
    pub(crate) fn grow(&mut self, by: i64) {
        self.gauge.add(by);
        self.by += by;
    }

    /// Hands one of its count to a guard of its own.
    pub(crate) fn split_one(&mut self) -> Self {
        self.by -= 1;
        Self { gauge: self.gauge.clone(), by: 1 }
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.gauge.sub(self.by);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn help_texts_are_the_doc_comments() {
        let metrics = Metrics::new().unwrap();
        metrics.for_model("m").queue_depth.set(3);
        let text = metrics.render().unwrap();
        assert!(text.contains("# HELP ghostserve_queue_depth Images waiting for a worker.\n"), "{text}");
        assert!(text.contains("ghostserve_queue_depth{model=\"m\"} 3\n"), "{text}");
    }

    #[test]
    fn a_gauge_falls_when_its_guard_goes() {
        let gauge = IntGauge::new("g", "g").unwrap();
        let guard = GaugeGuard::by(&gauge, 5);
        assert_eq!(gauge.get(), 5);
        drop(guard);
        assert_eq!(gauge.get(), 0);
    }
}
