//! All metrics of the server, in one struct. A field's doc comment is the help text of its metric on `/metrics`.
//!
//! Label values come from fixed sets: route patterns, status codes, error codes, stages, names of loaded models.

use std::time::{Duration, Instant};

use prometheus::core::Collector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use super::spans;

/// Declares a struct of metrics, and a constructor that registers each as `ghostserve_` followed by its field's name.
macro_rules! metrics {
    (
        $(#[$outer:meta])*
        pub struct $name:ident {
            $(
                $(#[doc = $help:literal])+
                $field:ident: $kind:ident $(<$($label:literal),+>)? $(= $buckets:expr)?,
            )+
        }
    ) => {
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
                    let $field: $kind = Metric::create(name, help, labels, buckets)?;
                    registry.register(Box::new($field.clone()))?;
                )+
                Ok(Self { $($field,)+ registry })
            }
        }
    };
    (@buckets) => { &[] };
    (@buckets $buckets:expr) => { $buckets };
}

/// A kind of metric that [`metrics!`] can create.
trait Metric: Collector + Clone + Sized + 'static {
    fn create(name: &str, help: String, labels: &[&str], buckets: &[f64]) -> prometheus::Result<Self>;
}

macro_rules! metric_kinds {
    ($($kind:ty: |$opts:ident, $labels:ident, $buckets:ident| $create:expr;)+) => {$(
        impl Metric for $kind {
            fn create(name: &str, help: String, $labels: &[&str], $buckets: &[f64]) -> prometheus::Result<Self> {
                let $opts = Opts::new(name, help);
                $create
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

/// Histogram buckets of durations, seconds: from the fastest stage (0.1 ms) to the longest request (10 s).
const SECONDS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Histogram buckets of batch sizes, images.
const BATCH_SIZES: &[f64] = &[1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0];

metrics! {
    /// All metrics of the server. A field is a handle that is cheap to record on; its clones share the values.
    pub struct Metrics {
        /// Number of HTTP requests answered, by route pattern and status.
        http_requests_total: IntCounterVec<"route", "status">,
        /// Time from the head of an HTTP request to the end of its handling, in seconds, by route pattern.
        http_request_duration_seconds: HistogramVec<"route"> = SECONDS,
        /// Number of HTTP requests being handled.
        http_requests_in_flight: IntGauge,
        /// Number of gRPC calls finished, by method and status code.
        grpc_requests_total: IntCounterVec<"method", "code">,
        /// Time from the head of a gRPC call to the end of its answer, in seconds, by method; a stream lasts as long as
        /// its client keeps it open.
        grpc_request_duration_seconds: HistogramVec<"method"> = SECONDS,
        /// Number of gRPC calls being handled.
        grpc_requests_in_flight: IntGauge,
        /// Number of open connections.
        http_connections: IntGauge,
        /// Number of connections closed because the client was too slow or idle, by phase: header, idle, response (the
        /// client read an answer too slowly).
        http_connection_timeouts_total: IntCounterVec<"phase">,
        /// Number of error answers, by error code; each refused request counts once, so every limit that takes effect
        /// is visible here.
        problems_total: IntCounterVec<"code">,
        /// Number of images, by model and outcome: ok, or the error code.
        images_total: IntCounterVec<"model", "outcome">,
        /// Time spent in a stage of a request, in seconds, by stage: read, decode, resize, queue, infer, encode, total.
        stage_duration_seconds: HistogramVec<"stage"> = SECONDS,
        /// Memory used by request bodies, in bytes.
        body_bytes: IntGauge,
        /// Number of requests and connections refused because one client address had used its share while other
        /// clients were served, by resource: connections, requests, body_bytes, feature_bytes, large_images.
        client_share_refusals_total: IntCounterVec<"resource">,
        /// Number of images in one run of the model, by model.
        batch_size: HistogramVec<"model"> = BATCH_SIZES,
        /// Number of images waiting for a worker, by model.
        queue_depth: IntGaugeVec<"model">,
        /// Number of images admitted and not yet answered (being decoded, waiting or running), by model.
        images_in_flight: IntGaugeVec<"model">,
        /// Largest number of images admitted at the same time, by model.
        images_capacity: IntGaugeVec<"model">,
        /// Number of images dropped after admission, by model, by reason (cancelled: the client went away; expired: the
        /// deadline passed) and by the stage that they had reached (decode, queue, infer).
        images_dropped_total: IntCounterVec<"model", "reason", "stage">,
        /// Number of images refused at admission, by model and reason: images (the maximum is in flight), wait (the
        /// predicted wait exceeds --max-wait), deadline (the predicted wait exceeds the request's own deadline), memory
        /// (the feature maps of all requests use all the memory allowed for them).
        images_shed_total: IntCounterVec<"model", "reason">,
        /// Predicted time that an image admitted now waits for a core, in seconds, by model; computed from the images
        /// in flight and the cost of an image, and the signal for autoscaling.
        predicted_wait_seconds: GaugeVec<"model">,
        /// Number of images looked up in the response cache, by model and outcome: hit, coalesced (another request was
        /// computing the same file), miss; recorded only with --response-cache.
        response_cache_total: IntCounterVec<"model", "outcome">,
        /// Number of sessions created for other input sizes or outputs than the classifier's, by model; if it keeps
        /// growing, --feature-sessions is too small for the sizes and outputs that clients request.
        sessions_opened_total: IntCounterVec<"model">,
        /// Memory used by feature maps, their images and their answers, in bytes.
        feature_bytes: IntGauge,
        /// Number of threads that decode or run the model now; at most 25 % more than ghostserve_cores.
        cores_busy: IntGauge,
        /// Number of cores available for decoding and inference.
        cores: IntGauge,
        /// Number of HTTP requests whose client went away before the answer, by route pattern.
        http_requests_abandoned_total: IntCounterVec<"route">,
        /// Number of workers that can take a batch, by model.
        workers_ready: IntGaugeVec<"model">,
        /// Number of times a worker loaded its model again after a failure, by model.
        worker_restarts_total: IntCounterVec<"model">,
        /// Number of images on which a decoder panicked; only that image is refused, but every panic is worth a report.
        decoder_panics_total: IntCounter,
        /// Always 1; the labels identify the served model.
        model_info: IntGaugeVec<"model", "digest", "architecture">,
        /// Always 1; the labels describe how a model is run.
        plan_info: IntGaugeVec<
            "model", "provider", "precision", "graph", "workers", "threads_per_worker", "max_batch"
        >,
        /// Always 1; the labels identify the running build.
        build_info: IntGaugeVec<"version", "revision", "onnxruntime">,
    }
}

/// A stage of a request. The names are also those of the `Server-Timing` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading the body.
    Read,
    /// Decoding the image: header and pixels.
    Decode,
    /// Resizing, cropping and normalising.
    Resize,
    /// Waiting for a worker.
    Queue,
    /// Running the model.
    Infer,
    /// Writing the answer.
    Encode,
    /// The whole request.
    Total,
}

impl Stage {
    /// Name in metrics and headers.
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
    /// Creates all metrics with the value zero, and on Linux the metrics of the process (`process_*`).
    ///
    /// # Errors
    /// Two metrics have the same name: a defect in this file.
    pub fn new() -> prometheus::Result<Self> {
        let metrics = Self::register()?;
        #[cfg(target_os = "linux")]
        metrics.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(metrics)
    }

    /// Records the duration of a stage.
    pub fn record_stage(&self, stage: Stage, took: Duration) {
        self.stage_duration_seconds.with_label_values(&[stage.name()]).observe(took.as_secs_f64());
    }

    /// Starts the timer of a stage; the stage's span is a child of the current one.
    pub(crate) fn start_stage(&self, stage: Stage) -> StageTimer<'_> {
        StageTimer { metrics: self, stage, start: Instant::now(), _span: spans::stage(stage) }
    }

    /// Renders all metrics in the Prometheus text format.
    ///
    /// # Errors
    /// A metric has no values or no name: a defect in this file.
    pub fn render(&self) -> prometheus::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// The metrics that the batching of one model records.
    #[must_use]
    pub fn for_model(&self, model: &str) -> ModelMetrics {
        let duration = |stage: Stage| self.stage_duration_seconds.with_label_values(&[stage.name()]);
        let dropped = |reason| {
            let counter = |stage: Stage| self.images_dropped_total.with_label_values(&[model, reason, stage.name()]);
            [counter(Stage::Decode), counter(Stage::Queue), counter(Stage::Infer)]
        };
        ModelMetrics {
            queue_depth: self.queue_depth.with_label_values(&[model]),
            in_flight: self.images_in_flight.with_label_values(&[model]),
            capacity: self.images_capacity.with_label_values(&[model]),
            batch_size: self.batch_size.with_label_values(&[model]),
            queue_seconds: duration(Stage::Queue),
            infer_seconds: duration(Stage::Infer),
            cancelled: dropped("cancelled"),
            expired: dropped("expired"),
            workers_ready: self.workers_ready.with_label_values(&[model]),
            worker_restarts: self.worker_restarts_total.with_label_values(&[model]),
            sessions_opened: self.sessions_opened_total.with_label_values(&[model]),
        }
    }
}

/// Timer of a running stage. If it is dropped before [`Self::end`], nothing is recorded.
pub(crate) struct StageTimer<'m> {
    metrics: &'m Metrics,
    stage: Stage,
    start: Instant,
    _span: tracing::Span,
}

impl StageTimer<'_> {
    /// Ends the stage: records its duration and returns it.
    pub(crate) fn end(self) -> Duration {
        let took = self.start.elapsed();
        self.metrics.record_stage(self.stage, took);
        took
    }
}

/// The metrics that [`crate::batch`] records for one model.
#[derive(Clone, Debug)]
pub struct ModelMetrics {
    /// Number of images waiting for a worker.
    pub queue_depth: IntGauge,
    /// Number of images admitted and not yet answered.
    pub in_flight: IntGauge,
    /// Largest number of images admitted at the same time.
    pub capacity: IntGauge,
    /// Number of images in one run.
    pub batch_size: Histogram,
    /// Time an image waits in the queue, seconds.
    pub queue_seconds: Histogram,
    /// Duration of the run that computed an image, seconds.
    pub infer_seconds: Histogram,
    /// Number of images dropped because the client went away, by stage: decode, queue, infer.
    pub cancelled: [IntCounter; 3],
    /// Number of images dropped because the deadline passed, by stage: decode, queue, infer.
    pub expired: [IntCounter; 3],
    /// Number of workers that can take a batch.
    pub workers_ready: IntGauge,
    /// Number of times a worker loaded its model again after a failure.
    pub worker_restarts: IntCounter,
    /// Number of sessions created for other input sizes or outputs than the classifier's.
    pub sessions_opened: IntCounter,
}

impl ModelMetrics {
    /// The counter of images dropped in a stage for a reason.
    pub(crate) fn dropped(&self, reason: DropReason, stage: Stage) -> &IntCounter {
        let counters = match reason {
            DropReason::Cancelled => &self.cancelled,
            DropReason::Expired => &self.expired,
        };
        match stage {
            Stage::Queue => &counters[1],
            Stage::Infer => &counters[2],
            _ => &counters[0],
        }
    }
}

/// The reason why an admitted image was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DropReason {
    /// The client went away.
    Cancelled,
    /// The deadline passed.
    Expired,
}

/// Raises a gauge while it exists: every path that drops it lowers the gauge again.
#[derive(Debug)]
pub struct GaugeGuard {
    gauge: IntGauge,
    amount: i64,
}

impl GaugeGuard {
    /// Raises `gauge` by one.
    #[must_use]
    pub fn one(gauge: &IntGauge) -> Self {
        Self::by(gauge, 1)
    }

    /// Raises `gauge` by an amount.
    #[must_use]
    pub fn by(gauge: &IntGauge, amount: i64) -> Self {
        gauge.add(amount);
        Self { gauge: gauge.clone(), amount }
    }
}

impl GaugeGuard {
    /// Raises the gauge further.
    pub(crate) fn grow(&mut self, amount: i64) {
        self.gauge.add(amount);
        self.amount += amount;
    }

    /// Moves one unit into a new guard; the gauge stays the same.
    pub(crate) fn split_one(&mut self) -> Self {
        self.amount -= 1;
        Self { gauge: self.gauge.clone(), amount: 1 }
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.gauge.sub(self.amount);
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
        let help = "# HELP ghostserve_queue_depth Number of images waiting for a worker, by model.\n";
        assert!(text.contains(help), "{text}");
        assert!(text.contains("ghostserve_queue_depth{model=\"m\"} 3\n"), "{text}");
    }

    #[test]
    fn a_gauge_falls_when_its_guard_is_dropped() {
        let gauge = IntGauge::new("g", "g").unwrap();
        let guard = GaugeGuard::by(&gauge, 5);
        assert_eq!(gauge.get(), 5);
        drop(guard);
        assert_eq!(gauge.get(), 0);
    }
}
