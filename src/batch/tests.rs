//! Tests of every rule of the queue and the worker, with a model that the tests control, on a paused clock.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::queue::Job;
use super::*;
use crate::cores::{Cores, Priority, Rank, Work};
use crate::fair_share::Client;
use crate::telemetry::{DropReason, Metrics, ModelMetrics, Stage};

const RUN: Duration = Duration::from_millis(10);
const FAR: Duration = Duration::from_secs(5);

/// First elements of rows that tell the model how to behave. For any other value it returns the negative.
const FAIL: f32 = -1.0;
const PANIC: f32 = -2.0;
const HANG: f32 = -3.0;
const LOSE_A_ROW: f32 = -4.0;

/// Second elements of rows: a kind of which at most two run together, one that the model has to open a session for, one
/// that it cannot run.
const LARGE: f32 = 1.0;
const NEW: f32 = 2.0;
const UNKNOWN: f32 = 3.0;
const OPEN: Duration = Duration::from_millis(100);

/// A model that records the batches it ran and takes [`RUN`] for each.
struct FakeModel(Arc<Mutex<Vec<Vec<f32>>>>);

impl Task for Vec<f32> {
    type Output = Vec<f32>;

    /// The second element is the kind of the task.
    fn fits(&self, other: &Self) -> bool {
        self.get(1) == other.get(1)
    }

    fn max_batch(&self) -> usize {
        if self.get(1) == Some(&LARGE) { 2 } else { usize::MAX }
    }
}

impl Model<Vec<f32>> for FakeModel {
    async fn ensure_session(&mut self, rows: &[&Vec<f32>]) -> Result<bool, ModelFailure> {
        match rows[0].get(1) {
            Some(&UNKNOWN) => Err(ModelFailure("unknown kind".into())),
            Some(&NEW) => {
                tokio::time::sleep(OPEN).await;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    async fn run(&mut self, rows: &[&Vec<f32>]) -> Result<Vec<Vec<f32>>, ModelFailure> {
        let values: Vec<f32> = rows.iter().map(|row| row[0]).collect();
        self.0.lock().push(values.clone());
        tokio::time::sleep(RUN).await;
        let has = |value: f32| values.contains(&value);
        if has(FAIL) {
            return Err(ModelFailure("told to".into()));
        }
        assert!(!has(PANIC), "told to panic");
        if has(HANG) {
            std::future::pending::<()>().await;
        }
        let count = values.len() - usize::from(has(LOSE_A_ROW));
        Ok(values[..count].iter().map(|v| vec![-v]).collect())
    }
}

/// One core, one worker, batches of up to four, no delay.
const BATCHING: Batching = Batching { max: 4, delay: Duration::ZERO, cores: 1 };

fn limits_for(images: usize) -> AdmissionLimits {
    AdmissionLimits { images, background_images: images / 2, max_wait: FAR * 2 }
}

fn request(images: usize, priority: Priority) -> AdmissionRequest {
    AdmissionRequest {
        images,
        decode: None,
        work: ONE_RUN,
        opens: false,
        priority,
        client: Client::LOCAL,
        deadline: Instant::now() + FAR * 10,
    }
}

struct Fixture {
    queue: Arc<Queue<Vec<f32>>>,
    cores: Arc<Cores>,
    metrics: ModelMetrics,
    batches: Arc<Mutex<Vec<Vec<f32>>>>,
    state: Arc<WorkerState>,
    worker: JoinHandle<()>,
}

impl Fixture {
    async fn start(capacity: usize) -> Self {
        Self::with(limits_for(capacity), BATCHING, 1).await
    }

    async fn with(limits: AdmissionLimits, batching: Batching, cores: usize) -> Self {
        let metrics = Metrics::new().unwrap().for_model("fake");
        let cores = Cores::new(cores);
        let queue = Queue::new(limits, Arc::clone(&cores), metrics.clone());
        let batches = Arc::new(Mutex::new(Vec::new()));
        let (state, worker) = Self::worker(&queue, &batches, batching);
        let fixture = Self { queue, cores, metrics, batches, state, worker };
        fixture.settle().await;
        assert!(fixture.state.is_ready());
        fixture
    }

    fn worker(
        queue: &Arc<Queue<Vec<f32>>>,
        batches: &Arc<Mutex<Vec<Vec<f32>>>>,
        batching: Batching,
    ) -> (Arc<WorkerState>, JoinHandle<()>) {
        let seen = Arc::clone(batches);
        let worker = Worker::new(Arc::clone(queue), batching, move || Ok(FakeModel(Arc::clone(&seen))));
        (worker.state(), tokio::spawn(worker.run()))
    }

    /// Sends a row that waits for its output at most `patience`.
    fn send(&self, value: f32, patience: Duration) -> JoinHandle<Result<Vec<f32>, JobError>> {
        self.send_as(Priority::Interactive, value, patience)
    }

    fn send_as(&self, priority: Priority, value: f32, patience: Duration) -> JoinHandle<Result<Vec<f32>, JobError>> {
        let deadline = Instant::now() + patience;
        let permit = self.queue.admit(request(1, priority)).unwrap();
        let queue = Arc::clone(&self.queue);
        tokio::spawn(async move { queue.run(permit, vec![value], deadline).await.map(|job| job.output) })
    }

    /// Sends a task of another kind.
    fn send_kind(&self, value: f32, kind: f32) -> JoinHandle<Result<Vec<f32>, JobError>> {
        let permit = self.admit(1).unwrap();
        let queue = Arc::clone(&self.queue);
        let deadline = Instant::now() + FAR;
        tokio::spawn(async move { queue.run(permit, vec![value, kind], deadline).await.map(|job| job.output) })
    }

    fn admit(&self, images: usize) -> Result<Permit, AdmitError> {
        self.queue.admit(request(images, Priority::Interactive))
    }

    fn admit_background(&self, images: usize) -> Result<Permit, AdmitError> {
        self.queue.admit(request(images, Priority::Background))
    }

    /// Numbers of images dropped in a stage: cancelled and expired.
    fn dropped(&self, stage: Stage) -> (u64, u64) {
        (
            self.metrics.dropped(DropReason::Cancelled, stage).get(),
            self.metrics.dropped(DropReason::Expired, stage).get(),
        )
    }

    /// Lets every async task run until it waits for time or for another task.
    async fn settle(&self) {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    fn batches(&self) -> Vec<Vec<f32>> {
        self.batches.lock().clone()
    }

    fn assert_empty(&self) {
        let gauges =
            (self.queue.depth(), self.metrics.queue_depth.get(), self.metrics.in_flight.get(), self.cores.busy());
        assert_eq!(gauges, (0, 0, 0, 0));
        assert_eq!(self.queue.predicted_wait(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_takes_a_single_row_at_once() {
    let f = Fixture::start(64).await;
    let start = Instant::now();
    assert_eq!(f.send(7.0, FAR).await.unwrap(), Ok(vec![-7.0]));
    assert_eq!(start.elapsed(), RUN, "only the model's run takes time");
    f.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn batches_form_while_the_worker_is_busy_in_order_and_up_to_the_limit() {
    let f = Fixture::start(64).await;
    let first = f.send(0.0, FAR);
    f.settle().await;
    let mut others = Vec::new();
    for value in 1..=6 {
        others.push(f.send(value as f32, FAR));
        f.settle().await;
    }
    assert_eq!(f.metrics.queue_depth.get(), 6);
    assert_eq!(first.await.unwrap(), Ok(vec![-0.0]));
    for (value, answer) in (1..=6).zip(others) {
        assert_eq!(answer.await.unwrap(), Ok(vec![-(value as f32)]), "every row gets its own answer");
    }
    assert_eq!(f.batches(), [vec![0.0], vec![1.0, 2.0, 3.0, 4.0], vec![5.0, 6.0]]);
    f.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn two_workers_share_one_queue() {
    let f = Fixture::start(64).await;
    let seen = Arc::clone(&f.batches);
    let second =
        Worker::new(Arc::clone(&f.queue), Batching { max: 1, ..BATCHING }, move || Ok(FakeModel(Arc::clone(&seen))));
    tokio::spawn(second.run());
    f.settle().await;
    assert_eq!(f.metrics.workers_ready.get(), 2);
    let start = Instant::now();
    let answers = [f.send(1.0, FAR), f.send(2.0, FAR)];
    f.settle().await;
    for answer in answers {
        assert!(answer.await.unwrap().is_ok());
    }
    assert_eq!(start.elapsed(), RUN, "both ran at the same time, or in one batch");
}

#[tokio::test(start_paused = true)]
async fn past_the_limit_nothing_is_admitted_and_dropped_permits_free_capacity() {
    let f = Fixture::start(3).await;
    let mut permit = f.admit(3).unwrap();
    assert_eq!(f.admit(1).unwrap_err(), AdmitError::Full);
    let one = permit.split_one(Duration::ZERO).unwrap();
    assert_eq!(f.metrics.in_flight.get(), 3);
    drop(one);
    assert_eq!(f.admit(2).unwrap_err(), AdmitError::Full, "all or none");
    drop(f.admit(1).unwrap());
    drop(permit);
    f.assert_empty();
    assert!(f.admit(3).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_frees_its_slot_at_once_unless_the_model_has_its_row() {
    let f = Fixture::start(2).await;
    let running = f.send(1.0, FAR);
    f.settle().await;
    let waiting = f.send(2.0, FAR);
    f.settle().await;
    waiting.abort();
    f.settle().await;
    assert_eq!((f.queue.depth(), f.dropped(Stage::Queue)), (0, (1, 0)));
    drop(f.admit(1).unwrap());
    running.abort();
    f.settle().await;
    assert_eq!(f.admit(2).unwrap_err(), AdmitError::Full, "the model still has the row");
    tokio::time::sleep(RUN * 2).await;
    assert_eq!(f.dropped(Stage::Infer), (1, 0));
    assert!(f.admit(2).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_is_met_to_the_millisecond_and_the_model_never_sees_the_row() {
    let f = Fixture::start(64).await;
    let running = f.send(1.0, FAR);
    f.settle().await;
    let start = Instant::now();
    let late = f.send(2.0, RUN / 2);
    assert_eq!(late.await.unwrap(), Err(JobError::Expired));
    assert!(start.elapsed() <= RUN / 2 + Duration::from_millis(1), "{:?}", start.elapsed());
    assert!(running.await.unwrap().is_ok());
    f.settle().await;
    assert_eq!(f.batches(), [[1.0]]);
    assert_eq!(f.dropped(Stage::Queue), (0, 1));
    f.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn rows_of_clients_that_leave_are_not_run() {
    let f = Fixture::start(64).await;
    let running = f.send(1.0, FAR);
    f.settle().await;
    let leaving: Vec<_> = (0..10).map(|_| f.send(2.0, FAR)).collect();
    let staying = f.send(3.0, FAR);
    f.settle().await;
    assert_eq!(f.metrics.in_flight.get(), 12);
    leaving.iter().for_each(JoinHandle::abort);
    assert!(running.await.unwrap().is_ok());
    assert_eq!(staying.await.unwrap(), Ok(vec![-3.0]));
    assert_eq!(f.batches(), [[1.0], [3.0]]);
    assert_eq!(f.dropped(Stage::Queue), (10, 0));
    f.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn a_model_that_fails_loses_only_its_batch_and_is_replaced() {
    for bad in [FAIL, PANIC, LOSE_A_ROW] {
        let f = Fixture::start(64).await;
        let running = f.send(1.0, FAR);
        f.settle().await;
        let batch = [f.send(bad, FAR), f.send(2.0, FAR)];
        f.settle().await;
        assert!(running.await.unwrap().is_ok());
        for answer in batch {
            assert_eq!(answer.await.unwrap(), Err(JobError::ModelFailed), "{bad}");
        }
        f.settle().await;
        assert!(!f.state.is_ready(), "between models it is not ready");
        assert_eq!(f.metrics.workers_ready.get(), 0);
        assert_eq!(f.send(5.0, FAR).await.unwrap(), Ok(vec![-5.0]), "the next model works");
        assert!(f.state.is_ready());
        assert_eq!(f.metrics.worker_restarts.get(), 1);
        f.assert_empty();
    }
}

#[tokio::test(start_paused = true)]
async fn loading_a_model_is_retried_with_growing_delays() {
    let metrics = Metrics::new().unwrap().for_model("fake");
    let queue = Queue::<Vec<f32>>::new(limits_for(1), Cores::new(1), metrics);
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&attempts);
    let worker = Worker::new(queue, BATCHING, move || {
        log.lock().push(Instant::now());
        Err::<FakeModel, _>(ModelFailure("no such file".into()))
    });
    let state = worker.state();
    let worker = tokio::spawn(worker.run());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!state.is_ready());
    let times = attempts.lock().clone();
    let waits: Vec<_> = times.windows(2).map(|w| (w[1] - w[0]).as_millis()).collect();
    assert!(waits.starts_with(&[100, 200, 400, 800]), "{waits:?}");
    assert_eq!(waits.last(), Some(&10_000));
    worker.abort();
}

#[tokio::test(start_paused = true)]
async fn a_hung_model_delays_no_request_past_its_deadline_and_is_reported() {
    let f = Fixture::start(64).await;
    let hung = f.send(HANG, FAR);
    f.settle().await;
    let behind = f.send(1.0, FAR);
    let start = Instant::now();
    assert_eq!(hung.await.unwrap(), Err(JobError::Expired));
    assert_eq!(behind.await.unwrap(), Err(JobError::Expired));
    assert!(start.elapsed() <= FAR + Duration::from_millis(1));
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!f.state.is_ready());
}

#[tokio::test(start_paused = true)]
async fn closing_runs_queued_tasks_and_rejects_later_ones() {
    let f = Fixture::start(64).await;
    let mut permit = f.admit(1).unwrap();
    let answers: Vec<_> = (0..9).map(|i| f.send(i as f32, FAR)).collect();
    f.settle().await;
    f.queue.close();
    assert_eq!(f.admit(1).unwrap_err(), AdmitError::Closed);
    let late = f.queue.run(permit.split_one(Duration::ZERO).unwrap(), vec![1.0], Instant::now() + FAR).await;
    assert_eq!(late.unwrap_err(), JobError::Closed);
    for answer in answers {
        assert!(answer.await.unwrap().is_ok());
    }
    f.worker.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_ends_when_the_queue_closes() {
    let f = Fixture::start(64).await;
    f.queue.close();
    f.worker.await.unwrap();
    assert_eq!(f.metrics.workers_ready.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_backlog_is_the_remaining_work_of_the_cores() {
    let f = Fixture::with(limits_for(64), BATCHING, 2).await;
    assert_eq!(f.queue.backlog(), Duration::ZERO);
    assert!(f.send(1.0, FAR).await.unwrap().is_ok());
    let _permit = f.admit(10).unwrap();
    assert_eq!(f.queue.backlog(), 5 * RUN, "ten images, two cores, one image in a batch so far");
    f.queue.record_decode(RUN);
    assert_eq!((f.queue.backlog(), f.queue.predicted_wait()), (10 * RUN, 10 * RUN), "and as much for decoding");
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_not_full_runs_after_the_decoding_that_can_fill_it() {
    let f = Fixture::start(64).await;
    let core = f.cores.acquire(Rank { priority: Priority::Interactive, work: Work::Decode }, 1).await;
    let first = f.send(1.0, FAR);
    f.settle().await;
    // Another image waits to be decoded: it takes the core first and then adds its row.
    let cores = Arc::clone(&f.cores);
    let decoding = tokio::spawn(async move {
        let core = cores.acquire(Rank { priority: Priority::Interactive, work: Work::Decode }, 1).await;
        tokio::time::sleep(RUN).await;
        drop(core);
    });
    f.settle().await;
    drop(core);
    tokio::time::sleep(RUN / 2).await;
    assert!(f.batches().is_empty());
    let second = f.send(2.0, FAR);
    decoding.await.unwrap();
    assert!(first.await.unwrap().is_ok() && second.await.unwrap().is_ok());
    assert_eq!(f.batches(), [[1.0, 2.0]]);
    f.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_fills_while_it_waits_goes_before_decoding() {
    let f = Fixture::start(64).await;
    let decode = Rank { priority: Priority::Interactive, work: Work::Decode };
    let core = f.cores.acquire(decode, 1).await;
    let mut answers = vec![f.send(1.0, FAR)];
    f.settle().await;
    let decoding = f.cores.acquire(decode, 1);
    tokio::pin!(decoding);
    assert!(futures::poll!(&mut decoding).is_pending());
    answers.extend((2..=4).map(|value| f.send(value as f32, FAR)));
    f.settle().await;
    drop(core);
    f.settle().await;
    assert_eq!(f.batches(), [[1.0, 2.0, 3.0, 4.0]]);
    assert!(futures::poll!(&mut decoding).is_pending());
    for answer in answers {
        assert!(answer.await.unwrap().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn rows_are_shared_among_workers_that_have_a_core() {
    let f = Fixture::with(limits_for(64), BATCHING, 2).await;
    let (state, _second) = Fixture::worker(&f.queue, &f.batches, BATCHING);
    f.settle().await;
    assert!(state.is_ready());
    let cores = f.cores.acquire(BEST, 2).await;
    let answers: Vec<_> = (1..=4).map(|value| f.send(value as f32, FAR)).collect();
    f.settle().await;
    drop(cores);
    let start = Instant::now();
    for answer in answers {
        assert!(answer.await.unwrap().is_ok());
    }
    assert_eq!(start.elapsed(), RUN);
    let mut sizes: Vec<_> = f.batches().iter().map(Vec::len).collect();
    sizes.sort_unstable();
    assert_eq!(sizes.iter().sum::<usize>(), 4);
    assert_eq!(sizes.len(), 2, "{sizes:?}");
    f.assert_empty();
}

/// The rank that is served before all others.
const BEST: Rank = Rank { priority: Priority::Interactive, work: Work::FullBatch };

#[tokio::test(start_paused = true)]
async fn a_batch_delay_lets_a_batch_fill_and_then_ends() {
    let delay = RUN / 2;
    let f = Fixture::with(limits_for(64), Batching { delay, ..BATCHING }, 1).await;
    let start = Instant::now();
    let first = f.send(1.0, FAR);
    tokio::time::sleep(delay / 2).await;
    let second = f.send(2.0, FAR);
    assert!(first.await.unwrap().is_ok() && second.await.unwrap().is_ok());
    assert_eq!(f.batches(), [[1.0, 2.0]]);
    assert_eq!(start.elapsed(), delay + RUN, "counted from the oldest row");
    // A full batch does not wait.
    let start = Instant::now();
    let answers: Vec<_> = (0..4).map(|value| f.send(value as f32, FAR)).collect();
    for answer in answers {
        assert!(answer.await.unwrap().is_ok());
    }
    assert_eq!(start.elapsed(), RUN);
}

#[tokio::test(start_paused = true)]
async fn background_work_waits_behind_interactive_work() {
    let f = Fixture::start(64).await;
    let running = f.send(0.0, FAR);
    f.settle().await;
    let background: Vec<_> = (1..=4).map(|v| f.send_as(Priority::Background, v as f32, FAR)).collect();
    f.settle().await;
    let interactive: Vec<_> = (5..=7).map(|v| f.send(v as f32, FAR)).collect();
    f.settle().await;
    assert!(running.await.unwrap().is_ok());
    for answer in background.into_iter().chain(interactive) {
        assert!(answer.await.unwrap().is_ok());
    }
    assert_eq!(f.batches()[1..], [vec![5.0, 6.0, 7.0, 1.0], vec![2.0, 3.0, 4.0]]);
    f.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn background_work_has_its_own_limit_and_delays_no_interactive_work() {
    let f = Fixture::with(AdmissionLimits { max_wait: 3 * RUN, ..limits_for(8) }, BATCHING, 1).await;
    assert!(f.send(1.0, FAR).await.unwrap().is_ok());
    let _background = f.admit_background(4).unwrap();
    assert_eq!(f.admit_background(1).unwrap_err(), AdmitError::Full, "the limit on background work");
    assert_eq!(f.queue.predicted_wait(), Duration::ZERO, "background work delays no interactive work");
    let _interactive = f.admit(4).unwrap();
    assert_eq!(f.admit(1).unwrap_err(), AdmitError::Full);
}

#[tokio::test(start_paused = true)]
async fn past_the_longest_wait_only_background_work_is_admitted() {
    let f = Fixture::with(AdmissionLimits { max_wait: 3 * RUN, ..limits_for(64) }, BATCHING, 1).await;
    assert!(f.admit(10).is_ok(), "no costs are known yet, and an idle server takes a large request");
    assert!(f.send(1.0, FAR).await.unwrap().is_ok());
    let first = f.admit(3).unwrap();
    let second = f.admit(1).unwrap();
    assert_eq!(f.admit(1).unwrap_err(), AdmitError::WaitTooLong(4 * RUN));
    assert!(f.admit_background(1).is_ok());
    drop(second);
    assert!(f.admit(1).is_ok());
    drop(first);
    f.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_cannot_be_met_is_rejected_at_once() {
    let f = Fixture::start(64).await;
    assert!(f.send(1.0, FAR).await.unwrap().is_ok());
    let _ahead = f.admit(4).unwrap();
    let request_within =
        |patience| AdmissionRequest { deadline: Instant::now() + patience, ..request(1, Priority::Interactive) };
    let admit = |patience| f.queue.admit(request_within(patience));
    assert_eq!(admit(5 * RUN - Duration::from_millis(1)).unwrap_err(), AdmitError::TooLate(5 * RUN));
    assert!(admit(5 * RUN).is_ok(), "four images ahead, and its own run");
    let checked = f.queue.would_admit(request_within(RUN));
    assert_eq!(checked.unwrap_err(), AdmitError::TooLate(5 * RUN), "the check before the body is read says the same");
}

#[tokio::test(start_paused = true)]
async fn every_outcome_of_an_image_is_counted_once() {
    let f = Fixture::start(64).await;
    // The client left during decoding; the decoder rejected the image; the deadline passed during decoding.
    drop(f.admit(2).unwrap());
    let mut rejected = f.admit(1).unwrap();
    rejected.settle();
    drop(rejected);
    let mut late = f.admit(1).unwrap();
    late.expire();
    drop(late);
    assert_eq!(f.dropped(Stage::Decode), (2, 1));
    // The deadline passed during the run.
    assert_eq!(f.send(1.0, RUN / 2).await.unwrap(), Err(JobError::Expired));
    tokio::time::sleep(RUN).await;
    assert_eq!(f.dropped(Stage::Infer), (0, 1));
    // The model ran.
    assert!(f.send(1.0, FAR).await.unwrap().is_ok());
    assert_eq!([Stage::Decode, Stage::Queue, Stage::Infer].map(|stage| f.dropped(stage)), [(2, 1), (0, 0), (0, 1)]);
    f.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn every_gauge_is_zero_after_many_clients_have_left() {
    let f = Fixture::start(1000).await;
    let clients: Vec<_> = (0..500).map(|i| f.send_as(Priority::ALL[i % 2], i as f32, FAR)).collect();
    f.settle().await;
    for (i, client) in clients.iter().enumerate() {
        client.abort();
        if i % 50 == 0 {
            tokio::time::sleep(RUN / 3).await;
        }
    }
    tokio::time::sleep(RUN * 2).await;
    f.assert_empty();
    assert!(f.send(1.0, FAR).await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_batch_holds_one_kind_of_task_that_of_the_oldest() {
    let f = Fixture::start(64).await;
    let busy = f.send(0.0, FAR);
    f.settle().await;
    let sent = [
        f.send(1.0, FAR),
        f.send_kind(2.0, LARGE),
        f.send(3.0, FAR),
        f.send_kind(4.0, LARGE),
        f.send_kind(5.0, LARGE),
        f.send(6.0, FAR),
    ];
    busy.await.unwrap().unwrap();
    for (value, sent) in (1u8..).zip(sent) {
        assert_eq!(sent.await.unwrap(), Ok(vec![-f32::from(value)]));
    }
    assert_eq!(
        f.batches(),
        [vec![0.0], vec![1.0, 3.0, 6.0], vec![2.0, 4.0], vec![5.0]],
        "at most two of the large kind"
    );
    f.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_the_model_cannot_run_does_not_affect_others() {
    let f = Fixture::start(64).await;
    assert_eq!(f.send_kind(1.0, UNKNOWN).await.unwrap(), Err(JobError::ModelFailed));
    assert_eq!(f.send(2.0, FAR).await.unwrap(), Ok(vec![-2.0]));
    assert_eq!(f.metrics.worker_restarts.get(), 0, "the model still works");
    f.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_more_work_counts_for_more() {
    let f = Fixture::start(64).await;
    f.queue.record_infer(ONE_RUN, 1, RUN);
    let large = AdmissionRequest { work: 8 * ONE_RUN, ..request(2, Priority::Interactive) };
    let mut permit = f.queue.admit(large).unwrap();
    assert_eq!(f.queue.predicted_wait(), 16 * RUN);
    let one = permit.split_one(Duration::ZERO).unwrap();
    drop(permit);
    assert_eq!(f.queue.predicted_wait(), 8 * RUN);
    drop(one);
    // A run that took eight times as long did eight times the work.
    f.queue.record_infer(8 * ONE_RUN, 1, 8 * RUN);
    let _small = f.admit(1).unwrap();
    assert_eq!(f.queue.predicted_wait(), RUN);
}

#[tokio::test(start_paused = true)]
async fn opening_a_session_is_predicted_and_does_not_count_as_run_time() {
    let f = Fixture::start(64).await;
    assert!(f.send(1.0, FAR).await.unwrap().is_ok());
    let start = Instant::now();
    assert!(f.send_kind(2.0, NEW).await.unwrap().is_ok());
    assert_eq!(start.elapsed(), OPEN + RUN);
    let mut permit = f.queue.admit(AdmissionRequest { opens: true, ..request(2, Priority::Interactive) }).unwrap();
    assert_eq!(f.queue.predicted_wait(), OPEN + 2 * RUN);
    // The first image carries the opening of the session.
    let first = permit.split_one(Duration::ZERO).unwrap();
    drop(first);
    assert_eq!(f.queue.predicted_wait(), RUN);
}

/// A worker that drops an abandoned task releases its permit, which locks the counter; admission asks whether the queue
/// is open, which locks its state. If either held both locks, the two could wait for each other.
#[test]
fn the_locks_of_the_state_and_of_the_counter_are_never_held_together() {
    let metrics = Metrics::new().unwrap().for_model("fake");
    let queue = Queue::<Vec<f32>>::new(limits_for(8), Cores::new(1), metrics);
    let permit = queue.admit(request(1, Priority::Interactive)).unwrap();
    let now = Instant::now();
    let abandoned = Job {
        id: 0,
        tag: 0,
        task: vec![1.0],
        deadline: now + FAR,
        enqueued_at: now,
        span: tracing::Span::none(),
        waiting: tracing::Span::none(),
        reply: tokio::sync::oneshot::channel().0,
        permit,
    };
    queue.lock().jobs[0].push_back(abandoned);
    let watch = |mut done: Box<dyn FnMut() -> bool + '_>| {
        let start = std::time::Instant::now();
        while !done() {
            assert!(start.elapsed() < FAR, "a lock is held while the other one is waited for");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    std::thread::scope(|threads| {
        let counter = queue.counter.lock();
        let worker = threads.spawn(|| queue.take_jobs(4, 0).0.len());
        watch(Box::new(|| queue.state.try_lock().is_some_and(|state| state.depth() == 0)));
        drop(counter);
        assert_eq!(worker.join().unwrap(), 0);

        let state = queue.lock();
        let client = threads.spawn(|| queue.would_admit(request(1, Priority::Interactive)));
        for _ in 0..100 {
            assert!(
                queue.counter.in_flight.try_lock().is_some(),
                "admission holds the counter and waits for the state"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(state);
        assert_eq!(client.join().unwrap(), Ok(()));
    });
}
