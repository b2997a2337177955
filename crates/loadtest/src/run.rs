//! Offering one load to one server, and what can be watched meanwhile.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use tokio::task::{JoinSet, LocalSet};
use tokio_util::sync::CancellationToken;

use super::client::{Connection, Failure};
use super::endpoint::Part;
use super::recorder::{Outcome, Recorder};
use super::{Endpoint, ErrorKind, LoadError, Measurement, cpu, open};

/// How requests follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// Every connection sends its next request when the last has been answered.
    Closed {
        /// Connections.
        connections: usize,
    },
    /// Requests are due at random times, whatever has become of those before.
    Open {
        /// Requests a second on average.
        rate: f64,
    },
}

impl std::fmt::Display for Load {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed { connections } => write!(f, "closed loop, {connections} connections"),
            Self::Open { rate } => write!(f, "open loop, {rate:.1} requests/s"),
        }
    }
}

/// How a load is offered.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// How long is measured.
    pub duration: Duration,
    /// How long the load runs before that.
    pub warm_up: Duration,
    /// How long an answer is waited for.
    pub timeout: Duration,
    /// The latency that counts as in time.
    pub slo: Duration,
    /// Connections that an open loop opens at most; past them, requests wait, and their latency with them.
    pub max_connections: usize,
    /// Of the random times of an open loop.
    pub seed: u64,
    /// Whether a client of a closed loop that is shed stays away for as long as the server asks.
    pub obey_retry_after: bool,
    /// Whether a success must have a JSON body, or the message that the call gives.
    pub check_json: bool,
}

/// What is known of a run that is not over.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Since the load began, warm-up included.
    pub elapsed: Duration,
    /// Whether it is still the warm-up.
    pub warming_up: bool,
    /// Successes so far.
    pub finished: u64,
    /// Their 99th percentile.
    pub p99: Duration,
    /// Requests without success so far.
    pub failures: u64,
}

/// Who looks on.
pub struct Watch<'a> {
    /// Called a few times a second.
    pub progress: &'a dyn Fn(Progress),
    /// Ends the run early.
    pub stop: CancellationToken,
}

/// How often progress is told.
const TICK: Duration = Duration::from_millis(200);
/// After a connection could not be opened, a client of a closed loop waits so long before it tries again.
const RECONNECT: Duration = Duration::from_millis(50);
/// Bytes of a body that are kept to be checked.
const CHECKED: usize = 1 << 20;

/// One run, as its tasks share it.
pub(super) struct Run {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) settings: Settings,
    pub(super) recorder: RefCell<Recorder>,
    pub(super) end: Instant,
    pub(super) stop: CancellationToken,
}

/// Offers `load` to `endpoint` and returns what came of it. Must run on a current-thread tokio runtime: everything it does
/// fits one core, and one thread needs no locks.
///
/// # Errors
/// The run could not begin.
pub async fn measure(
    endpoint: &Arc<Endpoint>,
    load: Load,
    settings: &Settings,
    watch: &Watch<'_>,
) -> Result<Measurement, LoadError> {
    let begin = Instant::now();
    let start = begin + settings.warm_up;
    let end = start + settings.duration;
    let cpu = cpu::process_seconds();
    let run = Rc::new(Run {
        endpoint: Arc::clone(endpoint),
        settings: settings.clone(),
        recorder: RefCell::new(Recorder::new(load, start, end, settings.slo)?),
        end,
        stop: watch.stop.clone(),
    });
    let local = LocalSet::new();
    let offered = local.run_until(async {
        match load {
            Load::Closed { connections } => closed(&run, connections).await,
            Load::Open { rate } => open::offer(&run, rate, begin).await,
        }
    });
    tokio::pin!(offered);
    let mut ticks = tokio::time::interval(TICK);
    let unanswered = loop {
        tokio::select! {
            unanswered = &mut offered => break unanswered?,
            _ = ticks.tick() => {
                let (finished, p99, failures) = run.recorder.borrow().so_far();
                let elapsed = begin.elapsed();
                let warming_up = elapsed < settings.warm_up;
                (watch.progress)(Progress { elapsed, warming_up, finished, p99, failures });
            }
        }
    };
    let mut measurement = run.recorder.borrow_mut().take()?;
    measurement.abandoned = unanswered;
    measurement.cpu_seconds = cpu.zip(cpu::process_seconds()).map(|(before, after)| after - before);
    measurement.wall_seconds = begin.elapsed().as_secs_f64();
    Ok(measurement)
}

/// Clients that each wait for their answers; gives how many were still waiting when the user had enough.
async fn closed(run: &Rc<Run>, connections: usize) -> Result<u64, LoadError> {
    let mut clients = JoinSet::new();
    for index in 0..connections {
        // Each begins elsewhere among the images, or all would send the large ones at once.
        let parts = &run.endpoint.parts;
        let part = index % parts.len();
        let first = index * parts[part].requests.len() / connections.max(1);
        clients.spawn_local(client(Rc::clone(run), part, first));
    }
    Ok(run.finish(clients).await)
}

async fn client(run: Rc<Run>, part: usize, first: usize) {
    let mut connection = None;
    let mut next = first;
    while Instant::now() < run.end && !run.stop.is_cancelled() {
        let due = Instant::now();
        let retry_after = run.exchange(&mut connection, (part, next), due).await;
        next += 1;
        match retry_after {
            Reply::Failed if connection.is_none() => tokio::time::sleep(RECONNECT).await,
            Reply::Shed(wait) if run.settings.obey_retry_after => {
                tokio::time::sleep(wait.min(run.end.saturating_duration_since(Instant::now()))).await;
            }
            _ => {}
        }
    }
}

/// What a client does next depends on.
pub(super) enum Reply {
    Answered,
    Shed(Duration),
    Failed,
}

impl Run {
    /// Sends one request, for an image by its number, over a connection to a part, which is opened if there is none, and notes what
    /// came of it.
    pub(super) async fn exchange(
        &self,
        slot: &mut Option<Connection>,
        (part, image): (usize, usize),
        due: Instant,
    ) -> Reply {
        let part = &self.endpoint.parts[part];
        let request = &part.requests[image % part.requests.len()];
        let asked = tokio::time::timeout(self.settings.timeout, self.try_exchange(slot, part, request)).await;
        let finished = Instant::now();
        let (outcome, reply) = match asked {
            Ok(Ok((outcome, reply))) => (outcome, reply),
            Ok(Err(failure)) => (Outcome::Failed(failure), Reply::Failed),
            Err(_) => {
                *slot = None;
                let detail = format!("no answer within {:?}", self.settings.timeout);
                (Outcome::Failed(Failure { kind: ErrorKind::Timeout, detail }), Reply::Failed)
            }
        };
        self.recorder.borrow_mut().record(due, finished, outcome);
        // The rest of a request that was answered early is not part of its latency.
        if let Some(connection) = slot.take() {
            *slot = connection.settle().await;
        }
        reply
    }

    async fn try_exchange(
        &self,
        slot: &mut Option<Connection>,
        part: &Part,
        request: &Bytes,
    ) -> Result<(Outcome, Reply), Failure> {
        let mut connection = match slot.take().filter(|connection| !connection.is_stale()) {
            Some(connection) => connection,
            None => {
                let opened = Connection::open(part).await;
                self.recorder.borrow_mut().connected();
                opened.map_err(|error| Failure { kind: ErrorKind::Connect, detail: error.to_string() })?
            }
        };
        let answer = connection.exchange(request, if self.settings.check_json { CHECKED } else { 0 }).await?;
        *slot = Some(connection);
        if self.settings.check_json
            && (200..300).contains(&answer.status)
            && let Err(detail) = part.check(&answer.body)
        {
            return Err(Failure { kind: ErrorKind::Body, detail });
        }
        let reply = match answer.status {
            429 | 503 => Reply::Shed(Duration::from_secs(answer.retry_after.unwrap_or(1))),
            _ => Reply::Answered,
        };
        let outcome = Outcome::Answered { status: answer.status, sent: answer.sent, received: answer.received };
        Ok((outcome, reply))
    }

    /// Waits for all tasks, or for the user to have enough; then gives how many were left.
    pub(super) async fn finish(&self, mut tasks: JoinSet<()>) -> u64 {
        loop {
            tokio::select! {
                task = tasks.join_next() => match task {
                    Some(_) => {}
                    None => return 0,
                },
                () = self.stop.cancelled() => {
                    self.recorder.borrow_mut().cut(Instant::now());
                    return tasks.len() as u64;
                }
            }
        }
    }
}
