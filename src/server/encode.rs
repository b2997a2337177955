//! The last step of a request, the same in every protocol: its answer is encoded, on a core if it is large, and timed.

use std::sync::Arc;

use tokio::time::{Duration, Instant};

use super::app::App;
use crate::fair_share::Share;
use crate::preprocess::RequestContext;
use crate::service::{Error, Extracted, FeaturePlan, RequestStatistics};
use crate::telemetry::{Stage, StageTimer};

/// Bytes of tensors in an answer above which it is encoded on a core. Encoding takes about 1 ns per byte, so a larger
/// answer would keep a thread that serves connections for more than a quarter of a millisecond.
const LARGE_ANSWER: usize = 256 << 10;

/// Times the encoding of an answer.
pub(super) struct EncodeTimer<'a> {
    app: &'a App,
    statistics: &'a RequestStatistics,
    request_start: Instant,
    timer: StageTimer<'a>,
}

impl<'a> EncodeTimer<'a> {
    pub(super) fn start(app: &'a App, statistics: &'a RequestStatistics, request_start: Instant) -> Self {
        Self { app, statistics, request_start, timer: app.metrics.start_stage(Stage::Encode) }
    }

    /// Records the time of the encoding and that of the whole request. Returns the former. A timer that is dropped
    /// instead records nothing.
    pub(super) fn finish(self) -> Duration {
        let encode_time = self.timer.end();
        self.statistics.record_encode(encode_time);
        self.app.metrics.record_stage(Stage::Total, self.request_start.elapsed());
        encode_time
    }
}

/// Runs `work` on a core if it has a `cost`, and on the calling thread if it is cheap.
pub(super) async fn run_by_cost<O: Send + 'static>(
    app: &App,
    context: RequestContext,
    cost: Option<Duration>,
    work: impl FnOnce() -> O + Send + 'static,
) -> Result<O, Error> {
    match cost {
        Some(cost) => app.service.run_on_core(context, cost, work).await,
        None => Ok(work()),
    }
}

/// Encodes an answer of feature maps: on a core if it is large, or if `expensive` says that its encoding takes long
/// for its size. Returns it with the memory of the maps, which the answer takes until it is sent.
pub(super) async fn encode_features<O: Send + 'static>(
    app: &App,
    plan: &Arc<FeaturePlan>,
    extracted: Extracted,
    expensive: bool,
    encode: impl FnOnce(&FeaturePlan, &Extracted) -> O + Send + 'static,
) -> Result<(O, Share), Error> {
    let images = extracted.results.len();
    let large = expensive || plan.tensor_bytes(images) > LARGE_ANSWER;
    let cost = large.then(|| plan.encode_cost(images));
    let (context, plan) = (plan.request().context, Arc::clone(plan));
    run_by_cost(app, context, cost, move || (encode(&plan, &extracted), extracted.memory)).await
}
