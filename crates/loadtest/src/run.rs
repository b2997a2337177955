//! One run: offers a workload to an endpoint and measures it.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use tokio::task::{JoinSet, LocalSet};
use tokio_util::sync::CancellationToken;

use super::client::{Connection, ExchangeError};
use super::endpoint::Destination;
use super::recorder::{RequestOutcome, RunRecorder};
use super::{LoadTestError, PreparedEndpoint, RequestErrorKind, RunMeasurement, cpu, open};

/// How requests follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum Workload {
    /// Closed loop: each connection sends its next request when the last one has been answered.
    #[serde(rename = "closed")]
    ClosedLoop {
        /// Number of connections.
        connections: usize,
    },
    /// Open loop: requests are due at random times (a Poisson process), independent of the responses.
    #[serde(rename = "open")]
    OpenLoop {
        /// Requests per second on average.
        #[serde(rename = "rate")]
        arrival_rate: f64,
    },
}

impl std::fmt::Display for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ClosedLoop { connections } => write!(f, "closed loop, {connections} connections"),
            Self::OpenLoop { arrival_rate } => write!(f, "open loop, {arrival_rate:.1} requests/s"),
        }
    }
}

/// Settings of a run.
#[derive(Clone, Debug, Serialize)]
pub struct RunSettings {
    /// Length of the measured window.
    pub duration: Duration,
    /// Length of the warm-up: the workload runs, but is not measured.
    pub warm_up: Duration,
    /// Time allowed for a response, opening the connection included.
    pub timeout: Duration,
    /// Latency objective: a response within it counts as goodput.
    pub slo: Duration,
    /// Largest number of connections of an open loop. Requests beyond it wait, and their latency includes the wait.
    pub max_connections: usize,
    /// Seed of the random arrival times of an open loop.
    pub seed: u64,
    /// Whether a connection of a closed loop pauses after a 429 or 503 for the server's `Retry-After`; one second
    /// without it.
    pub obey_retry_after: bool,
    /// Whether a successful response must have a JSON body (HTTP) or the method's response message (gRPC).
    pub check_json: bool,
}

/// Intermediate results of a run.
#[derive(Clone, Copy, Debug)]
pub struct RunProgress {
    /// Time since the run started, warm-up included.
    pub elapsed: Duration,
    /// Whether the run is in its warm-up.
    pub warming_up: bool,
    /// Number of successful responses in the window.
    pub finished: u64,
    /// 99th percentile of the latencies of successful requests.
    pub p99: Duration,
    /// Number of failed requests.
    pub failures: u64,
}

/// Observes a run and can stop it.
pub struct RunObserver<'a> {
    /// Called a few times per second.
    pub on_progress: &'a dyn Fn(RunProgress),
    /// Stops the run early when cancelled.
    pub stop: CancellationToken,
}

/// Interval between progress reports.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// Pause of a closed-loop connection after it could not be opened.
const RECONNECT_DELAY: Duration = Duration::from_millis(50);
/// Largest length of a body that is checked, bytes.
const CHECKED_BODY: usize = 1 << 20;

/// State of one run, shared by its tasks.
pub(super) struct RunContext {
    pub(super) endpoint: Arc<PreparedEndpoint>,
    pub(super) settings: RunSettings,
    pub(super) recorder: RefCell<RunRecorder>,
    pub(super) end: Instant,
    pub(super) stop: CancellationToken,
}

/// Offers `workload` to `endpoint` and returns the measurement. Must run on a current-thread tokio runtime: one core
/// is enough for the work, and a single thread needs no locks.
///
/// # Errors
/// The run could not start.
pub async fn measure(
    endpoint: &Arc<PreparedEndpoint>,
    workload: Workload,
    settings: &RunSettings,
    observer: &RunObserver<'_>,
) -> Result<RunMeasurement, LoadTestError> {
    let begin = Instant::now();
    let start = begin + settings.warm_up;
    let end = start + settings.duration;
    let cpu_before = cpu::process_seconds();
    let run = Rc::new(RunContext {
        endpoint: Arc::clone(endpoint),
        settings: settings.clone(),
        recorder: RefCell::new(RunRecorder::new(workload, start, end, settings.slo)?),
        end,
        stop: observer.stop.clone(),
    });
    let local = LocalSet::new();
    let offered = local.run_until(async {
        match workload {
            Workload::ClosedLoop { connections } => run_closed_loop(&run, connections).await,
            Workload::OpenLoop { arrival_rate } => open::run_open_loop(&run, arrival_rate, begin).await,
        }
    });
    tokio::pin!(offered);
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    let unanswered = loop {
        tokio::select! {
            unanswered = &mut offered => break unanswered?,
            _ = ticks.tick() => {
                let elapsed = begin.elapsed();
                let progress = run.recorder.borrow().progress(elapsed, elapsed < settings.warm_up);
                (observer.on_progress)(progress);
            }
        }
    };
    let mut measurement = run.recorder.borrow_mut().take_measurement()?;
    measurement.abandoned = unanswered;
    measurement.cpu_seconds = cpu_before.zip(cpu::process_seconds()).map(|(before, after)| after - before);
    measurement.wall_seconds = begin.elapsed().as_secs_f64();
    Ok(measurement)
}

/// Runs a closed loop over a number of connections. Returns the number of connections that waited for a response when
/// the run was stopped early, otherwise 0.
async fn run_closed_loop(run: &Rc<RunContext>, connections: usize) -> Result<u64, LoadTestError> {
    let mut tasks = JoinSet::new();
    for index in 0..connections {
        // Connections start at different images: otherwise all would send the large ones at the same time.
        let destinations = &run.endpoint.destinations;
        let destination = index % destinations.len();
        let first_image = index * destinations[destination].requests.len() / connections.max(1);
        tasks.spawn_local(closed_loop_client(Rc::clone(run), destination, first_image));
    }
    Ok(run.finish(tasks).await)
}

/// One connection of a closed loop.
async fn closed_loop_client(run: Rc<RunContext>, destination: usize, first_image: usize) {
    let mut connection = None;
    let mut image = first_image;
    while Instant::now() < run.end && !run.stop.is_cancelled() {
        let due = Instant::now();
        let reply = run.exchange(&mut connection, destination, image, due).await;
        image += 1;
        match reply {
            ReplyKind::Failed if connection.is_none() => tokio::time::sleep(RECONNECT_DELAY).await,
            ReplyKind::Rejected { retry_after } if run.settings.obey_retry_after => {
                tokio::time::sleep(retry_after.min(run.end.saturating_duration_since(Instant::now()))).await;
            }
            _ => {}
        }
    }
}

/// The kind of reply to a request; a closed-loop client decides by it when to send the next one.
pub(super) enum ReplyKind {
    Answered,
    Rejected { retry_after: Duration },
    Failed,
}

impl RunContext {
    /// Sends one request and records its outcome. The connection in `slot` is used if there is one and it is not
    /// stale; otherwise a new one is opened. `image` counts up without limit: images repeat.
    pub(super) async fn exchange(
        &self,
        slot: &mut Option<Connection>,
        destination: usize,
        image: usize,
        due: Instant,
    ) -> ReplyKind {
        let destination = &self.endpoint.destinations[destination];
        let request = &destination.requests[image % destination.requests.len()];
        let attempt = self.try_exchange(slot, destination, request);
        let result = tokio::time::timeout(self.settings.timeout, attempt).await;
        let finished = Instant::now();
        let (outcome, reply) = match result {
            Ok(Ok((outcome, reply))) => (outcome, reply),
            Ok(Err(error)) => (RequestOutcome::Failed(error), ReplyKind::Failed),
            Err(_) => {
                *slot = None;
                let detail = format!("no answer within {:?}", self.settings.timeout);
                let error = ExchangeError { kind: RequestErrorKind::Timeout, detail };
                (RequestOutcome::Failed(error), ReplyKind::Failed)
            }
        };
        self.recorder.borrow_mut().record(due, finished, outcome);
        // Sending the rest of a request that was answered early is not part of its latency.
        if let Some(connection) = slot.take() {
            *slot = connection.into_reusable().await;
        }
        reply
    }

    async fn try_exchange(
        &self,
        slot: &mut Option<Connection>,
        destination: &Destination,
        request: &Bytes,
    ) -> Result<(RequestOutcome, ReplyKind), ExchangeError> {
        let mut connection = match slot.take().filter(|connection| !connection.is_stale()) {
            Some(connection) => connection,
            None => {
                let opened = Connection::open(destination).await;
                self.recorder.borrow_mut().record_connection();
                opened.map_err(|error| ExchangeError { kind: RequestErrorKind::Connect, detail: error.to_string() })?
            }
        };
        let body_limit = if self.settings.check_json { CHECKED_BODY } else { 0 };
        let response = connection.exchange(request, body_limit).await?;
        *slot = Some(connection);
        if self.settings.check_json
            && (200..300).contains(&response.status)
            && let Err(detail) = destination.check_body(&response.body)
        {
            return Err(ExchangeError { kind: RequestErrorKind::Body, detail });
        }
        let reply = match response.status {
            429 | 503 => ReplyKind::Rejected { retry_after: Duration::from_secs(response.retry_after.unwrap_or(1)) },
            _ => ReplyKind::Answered,
        };
        let (sent, received) = (response.sent, response.received);
        Ok((RequestOutcome::Answered { status: response.status, sent, received }, reply))
    }

    /// Waits until all tasks have ended or the run is stopped. Returns the number of unfinished tasks.
    pub(super) async fn finish(&self, mut tasks: JoinSet<()>) -> u64 {
        loop {
            tokio::select! {
                task = tasks.join_next() => match task {
                    Some(_) => {}
                    None => return 0,
                },
                () = self.stop.cancelled() => {
                    self.recorder.borrow_mut().end_early(Instant::now());
                    return tasks.len() as u64;
                }
            }
        }
    }
}
