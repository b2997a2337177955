//! Every rule of the queue and the worker, with a model that is told what to do, on a paused clock.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;
use crate::telemetry::{Metrics, ModelMetrics};

const RUN: Duration = Duration::from_millis(10);
const FAR: Duration = Duration::from_secs(5);

/// Rows' first elements tell the model how to behave; others are answered with their negative.
const FAIL: f32 = -1.0;
const PANIC: f32 = -2.0;
const HANG: f32 = -3.0;
const LOSE_A_ROW: f32 = -4.0;

/// Remembers the batches it ran; takes [`RUN`] for each.
struct FakeModel(Arc<Mutex<Vec<Vec<f32>>>>);

impl Model for FakeModel {
    async fn run(&mut self, rows: &[&[f32]]) -> Result<Vec<Vec<f32>>, ModelFailure> {
        let values: Vec<f32> = rows.iter().map(|row| row[0]).collect();
        self.0.lock().unwrap().push(values.clone());
        tokio::time::sleep(RUN).await;
        let has = |what: f32| values.contains(&what);
        if has(FAIL) {
            return Err(ModelFailure("told to".into()));
        }
        assert!(!has(PANIC), "told to panic");
        if has(HANG) {
            std::future::pending::<()>().await;
        }
        let kept = values.len() - usize::from(has(LOSE_A_ROW));
        Ok(values[..kept].iter().map(|v| vec![-v]).collect())
    }
}

struct Fixture {
    queue: Arc<Queue>,
    metrics: ModelMetrics,
    batches: Arc<Mutex<Vec<Vec<f32>>>>,
    state: Arc<WorkerState>,
    worker: JoinHandle<()>,
}

impl Fixture {
    /// One worker, batches of up to four.
    async fn start(capacity: usize) -> Self {
        let metrics = Metrics::new().unwrap().for_model("fake");
        let queue = Queue::new(capacity, metrics.clone());
        let batches = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&batches);
        let worker = Worker::new(Arc::clone(&queue), 4, move || Ok(FakeModel(Arc::clone(&seen))));
        let state = worker.state();
        let worker = tokio::spawn(worker.run());
        let fixture = Self { queue, metrics, batches, state, worker };
        fixture.settle().await;
        assert!(fixture.state.is_ready());
        fixture
    }

    /// Sends a row that waits for its answer at most `patience`.
    fn send(&self, value: f32, patience: Duration) -> JoinHandle<Result<Vec<f32>, JobError>> {
        let permit = self.queue.admit(1).unwrap();
        let queue = Arc::clone(&self.queue);
        let deadline = Instant::now() + patience;
        tokio::spawn(async move { queue.run(permit, vec![value], deadline).await.map(|answer| answer.output) })
    }

    /// Lets every task run until it waits for time or for another.
    async fn settle(&self) {
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    fn batches(&self) -> Vec<Vec<f32>> {
        self.batches.lock().unwrap().clone()
    }

    fn assert_empty(&self) {
        assert_eq!((self.queue.depth(), self.metrics.queue_depth.get(), self.metrics.in_flight.get()), (0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_worker_takes_a_single_row_at_once() {
    let f = Fixture::start(64).await;
    let start = Instant::now();
    assert_eq!(f.send(7.0, FAR).await.unwrap(), Ok(vec![-7.0]));
    assert_eq!(start.elapsed(), RUN, "no time passes but the model's");
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
    let second = Worker::new(Arc::clone(&f.queue), 1, move || Ok(FakeModel(Arc::clone(&seen))));
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
async fn past_the_bound_nothing_is_admitted_and_room_comes_back() {
    let f = Fixture::start(3).await;
    let mut permit = f.queue.admit(3).unwrap();
    assert_eq!(f.queue.admit(1).unwrap_err(), AdmitError::Full);
    let one = permit.split_one().unwrap();
    assert_eq!(f.metrics.in_flight.get(), 3);
    drop(one);
    assert_eq!(f.queue.admit(2).unwrap_err(), AdmitError::Full, "all or none");
    drop(f.queue.admit(1).unwrap());
    drop(permit);
    f.assert_empty();
    assert!(f.queue.admit(3).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_row_in_the_queue_keeps_its_place_in_the_bound_when_its_client_is_gone() {
    let f = Fixture::start(2).await;
    let _running = f.send(1.0, FAR);
    f.settle().await;
    let waiting = f.send(2.0, FAR);
    f.settle().await;
    waiting.abort();
    f.settle().await;
    assert_eq!(f.queue.admit(1).unwrap_err(), AdmitError::Full);
    tokio::time::sleep(RUN * 2).await;
    assert!(f.queue.admit(2).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_is_kept_to_the_millisecond_and_the_model_never_sees_the_row() {
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
    assert_eq!(f.metrics.expired.get(), 1);
    f.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn clients_that_leave_take_their_rows_with_them() {
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
    assert_eq!(f.metrics.cancelled.get(), 10);
    f.assert_empty();
}

#[tokio::test(start_paused = true)]
async fn a_model_that_fails_costs_its_batch_and_is_replaced() {
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
        assert_eq!(f.metrics.restarts.get(), 1);
        f.assert_empty();
    }
}

#[tokio::test(start_paused = true)]
async fn a_model_that_cannot_be_loaded_is_tried_again_ever_more_slowly() {
    let metrics = Metrics::new().unwrap().for_model("fake");
    let queue = Queue::new(1, metrics);
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&attempts);
    let worker = Worker::new(queue, 1, move || {
        log.lock().unwrap().push(Instant::now());
        Err::<FakeModel, _>(ModelFailure("no such file".into()))
    });
    let state = worker.state();
    let worker = tokio::spawn(worker.run());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!state.is_ready());
    let times = attempts.lock().unwrap().clone();
    let waits: Vec<_> = times.windows(2).map(|w| (w[1] - w[0]).as_millis()).collect();
    assert!(waits.starts_with(&[100, 200, 400, 800]), "{waits:?}");
    assert_eq!(waits.last(), Some(&10_000));
    worker.abort();
}

#[tokio::test(start_paused = true)]
async fn a_model_that_hangs_costs_nobody_more_than_their_deadline_and_shows() {
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
async fn closing_answers_what_was_queued_and_refuses_what_comes_later() {
    let f = Fixture::start(64).await;
    let mut permit = f.queue.admit(1).unwrap();
    let answers: Vec<_> = (0..9).map(|i| f.send(i as f32, FAR)).collect();
    f.settle().await;
    f.queue.close();
    assert_eq!(f.queue.admit(1).unwrap_err(), AdmitError::Closed);
    let late = f.queue.run(permit.split_one().unwrap(), vec![1.0], Instant::now() + FAR).await;
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
async fn the_backlog_is_what_the_workers_still_have_to_do() {
    let f = Fixture::start(64).await;
    assert_eq!(f.queue.backlog(), Duration::ZERO);
    assert!(f.send(1.0, FAR).await.unwrap().is_ok());
    let _permit = f.queue.admit(10).unwrap();
    assert_eq!(f.queue.backlog(), 10 * RUN, "ten images, one worker, one image in a batch so far");
}
