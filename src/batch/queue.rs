//! The queue itself: tasks that wait for a worker.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use super::admission::{Admission, Bounds, InFlight, Permit, Places};
use super::{Answer, JobError, Task};
use crate::cores::{Cores, Priority};
use crate::fair_share::FairOrder;
use crate::telemetry::{ModelMetrics, Stage, spans};

/// One model's tasks, from admission to a worker's hands.
#[derive(Debug)]
pub struct Queue<T: Task> {
    pub(super) state: Mutex<State<T>>,
    /// Woken by every task; whoever is woken and leaves some behind wakes the next.
    pub(super) ready: Notify,
    pub(super) cores: Arc<Cores>,
    pub(super) admission: Admission,
    pub(super) places: Arc<Places>,
    pub(super) metrics: ModelMetrics,
}

#[derive(Debug)]
pub(super) struct State<T: Task> {
    /// By priority; in the order of their tags, then of their ids.
    pub(super) jobs: [VecDeque<Job<T>>; 2],
    /// Whose turn it is with the model.
    pub(super) shares: FairOrder,
    pub(super) closed: bool,
    next_id: u64,
}

impl<T: Task> State<T> {
    pub(super) fn depth(&self) -> usize {
        self.jobs.iter().map(VecDeque::len).sum()
    }
}

/// A task that waits.
#[derive(Debug)]
pub(super) struct Job<T: Task> {
    id: u64,
    pub(super) tag: u64,
    pub(super) task: T,
    pub(super) deadline: Instant,
    pub(super) enqueued_at: Instant,
    /// The request's span, so that what happens to the task is logged with its id.
    pub(super) span: tracing::Span,
    /// Open for as long as the task waits.
    pub(super) waiting: tracing::Span,
    pub(super) reply: oneshot::Sender<Result<Answer<T::Output>, JobError>>,
    /// Held until the job is answered or forgotten: a task in the queue or in a worker counts even when its client is gone.
    pub(super) permit: Permit,
}

impl<T: Task> Job<T> {
    /// Ends the job. Its place is free before its owner hears of it: whoever asks again at once must not be refused for it.
    pub(super) fn answer(mut self, result: Result<Answer<T::Output>, JobError>) {
        let gone = self.reply.is_closed();
        if matches!(result, Err(JobError::Expired)) || gone && self.deadline <= Instant::now() {
            self.permit.expire();
        } else if !gone {
            self.permit.settle();
        }
        drop(self.permit);
        // An owner that has left does not want it.
        let _ = self.reply.send(result);
    }
}

impl<T: Task> Queue<T> {
    /// A queue within `bounds`, whose work is done on `cores`.
    #[must_use]
    pub fn new(bounds: Bounds, cores: Arc<Cores>, metrics: ModelMetrics) -> Arc<Self> {
        metrics.capacity.set(bounds.images as i64);
        let places = Places { in_flight: Mutex::new(InFlight::default()), metrics: metrics.clone() };
        Arc::new(Self {
            state: Mutex::new(State {
                jobs: Default::default(),
                shares: FairOrder::default(),
                closed: false,
                next_id: 0,
            }),
            ready: Notify::new(),
            cores,
            admission: Admission::new(bounds),
            places: Arc::new(places),
            metrics,
        })
    }

    /// Queues a task and waits for its answer, at most until `deadline`. Dropping the future withdraws the task.
    ///
    /// # Errors
    /// The deadline passed, the model failed, or the queue was closed.
    pub async fn run(&self, mut permit: Permit, task: T, deadline: Instant) -> Result<Answer<T::Output>, JobError> {
        let (reply, answer) = oneshot::channel();
        let span = tracing::Span::current();
        let waiting_span = spans::stage(Stage::Queue);
        let priority = permit.priority();
        permit.reach(Stage::Queue);
        let waiting = {
            let mut state = self.lock();
            if state.closed {
                permit.settle();
                return Err(JobError::Closed);
            }
            let id = state.next_id;
            state.next_id += 1;
            let tag = state.shares.tag(Some((permit.client(), permit.work())));
            let (enqueued_at, waiting) = (Instant::now(), waiting_span);
            let job = Job { id, tag, task, deadline, enqueued_at, span, waiting, reply, permit };
            let jobs = &mut state.jobs[priority as usize];
            let at = jobs.partition_point(|other| other.tag <= tag);
            jobs.insert(at, job);
            self.metrics.queue_depth.set(state.depth() as i64);
            Waiting { queue: self, priority, id }
        };
        self.ready.notify_one();
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            // The worker that had it is gone without a word.
            Ok(Err(_)) => Err(JobError::ModelFailed),
            Err(_) => {
                if let Some(job) = waiting.withdraw() {
                    job.answer(Err(JobError::Expired));
                }
                Err(JobError::Expired)
            }
        }
    }

    /// Admits no more. What is queued is still run; then the workers end.
    pub fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_waiters();
    }

    /// Tasks that wait.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.lock().depth()
    }

    /// Whether nothing is queued and nothing will be.
    pub(super) fn is_finished(&self) -> bool {
        let state = self.lock();
        state.closed && state.depth() == 0
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing that runs under the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who waits for a task's answer. When he is gone, so is the task, unless a worker has it.
struct Waiting<'a, T: Task> {
    queue: &'a Queue<T>,
    priority: Priority,
    id: u64,
}

impl<T: Task> Waiting<'_, T> {
    fn withdraw(&self) -> Option<Job<T>> {
        let mut state = self.queue.lock();
        let jobs = &mut state.jobs[self.priority as usize];
        let at = jobs.iter().position(|job| job.id == self.id)?;
        let job = jobs.remove(at);
        if let Some(job) = &job {
            state.shares.refund(job.permit.client(), job.permit.work());
        }
        self.queue.metrics.queue_depth.set(state.depth() as i64);
        job
    }
}

impl<T: Task> Drop for Waiting<'_, T> {
    fn drop(&mut self) {
        // Its permit counts it as cancelled.
        drop(self.withdraw());
    }
}
