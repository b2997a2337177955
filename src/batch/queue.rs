//! The queue: tasks that wait for a worker.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, timeout_at};

use super::admission::{Admission, AdmissionLimits, InFlightCounter, Permit};
use super::{JobError, JobOutput, Task};
use crate::cores::{Cores, Priority};
use crate::fair_share::FairOrder;
use crate::telemetry::{ModelMetrics, Stage, spans};

/// One model's tasks, from admission until a worker takes them.
#[derive(Debug)]
pub struct Queue<T: Task> {
    pub(super) state: Mutex<QueueState<T>>,
    /// Notified for every task. A worker that leaves tasks behind notifies the next one.
    pub(super) ready: Notify,
    pub(super) cores: Arc<Cores>,
    pub(super) admission: Admission,
    pub(super) counter: Arc<InFlightCounter>,
    pub(super) metrics: ModelMetrics,
}

/// The part of a queue that its lock protects.
#[derive(Debug)]
pub(super) struct QueueState<T: Task> {
    /// By priority; in the order of their tags, then of their ids.
    pub(super) jobs: [VecDeque<Job<T>>; 2],
    /// The order in which clients' tasks are served.
    pub(super) shares: FairOrder,
    pub(super) closed: bool,
    next_id: u64,
}

impl<T: Task> QueueState<T> {
    pub(super) fn depth(&self) -> usize {
        self.jobs.iter().map(VecDeque::len).sum()
    }
}

/// A task that waits.
#[derive(Debug)]
pub(super) struct Job<T: Task> {
    pub(super) id: u64,
    pub(super) tag: u64,
    pub(super) task: T,
    pub(super) deadline: Instant,
    pub(super) enqueued_at: Instant,
    /// The request's span, so that log lines about the task carry the request's id.
    pub(super) span: tracing::Span,
    /// A span that is open while the task waits.
    pub(super) waiting: tracing::Span,
    pub(super) reply: oneshot::Sender<Result<JobOutput<T::Output>, JobError>>,
    /// Kept until the job is answered or dropped: a task in the queue or in a worker counts even when its client has
    /// left.
    pub(super) permit: Permit,
}

impl<T: Task> Job<T> {
    /// Ends the job. Its permit is released before the caller receives the result, so that a client that sends its next
    /// request at once is not rejected because of this one.
    pub(super) fn answer(mut self, result: Result<JobOutput<T::Output>, JobError>) {
        let gone = self.reply.is_closed();
        if matches!(result, Err(JobError::Expired)) || gone && self.deadline <= Instant::now() {
            self.permit.expire();
        } else if !gone {
            self.permit.settle();
        }
        drop(self.permit);
        // This fails if the caller has left, which is no error.
        let _ = self.reply.send(result);
    }
}

impl<T: Task> Queue<T> {
    /// Creates a queue with the given limits, whose work is done on `cores`.
    #[must_use]
    pub fn new(limits: AdmissionLimits, cores: Arc<Cores>, metrics: ModelMetrics) -> Arc<Self> {
        metrics.capacity.set(limits.images as i64);
        let counter = InFlightCounter { in_flight: Mutex::default(), freed: Notify::new(), metrics: metrics.clone() };
        Arc::new(Self {
            state: Mutex::new(QueueState {
                jobs: Default::default(),
                shares: FairOrder::default(),
                closed: false,
                next_id: 0,
            }),
            ready: Notify::new(),
            cores,
            admission: Admission::new(limits),
            counter: Arc::new(counter),
            metrics,
        })
    }

    /// Queues a task and waits for its output, at most until `deadline`. Dropping the future withdraws the task.
    ///
    /// # Errors
    /// The deadline passed, the model failed, or the queue was closed.
    pub async fn run(&self, mut permit: Permit, task: T, deadline: Instant) -> Result<JobOutput<T::Output>, JobError> {
        let (reply, output) = oneshot::channel();
        let span = tracing::Span::current();
        let waiting_span = spans::stage(Stage::Queue);
        let priority = permit.priority();
        permit.reach(Stage::Queue);
        let waiting_job = {
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
            let index = jobs.partition_point(|other| other.tag <= tag);
            jobs.insert(index, job);
            self.metrics.queue_depth.set(state.depth() as i64);
            WaitingJob { queue: self, priority, id }
        };
        self.ready.notify_one();
        match timeout_at(deadline, output).await {
            Ok(Ok(result)) => result,
            // The worker that had the job has ended without an answer.
            Ok(Err(_)) => Err(JobError::ModelFailed),
            Err(_) => {
                if let Some(job) = waiting_job.withdraw() {
                    job.answer(Err(JobError::Expired));
                }
                Err(JobError::Expired)
            }
        }
    }

    /// Closes the queue to new images and tasks. Queued tasks still run; then the workers end.
    pub fn close(&self) {
        self.lock().closed = true;
        self.ready.notify_waiters();
    }

    /// Number of tasks that wait.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.lock().depth()
    }

    /// Whether the queue is empty and closed.
    pub(super) fn is_finished(&self) -> bool {
        let state = self.lock();
        state.closed && state.depth() == 0
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, QueueState<T>> {
        self.state.lock()
    }
}

/// A caller's hold on its job. Dropping it withdraws the job, unless a worker has taken it.
struct WaitingJob<'a, T: Task> {
    queue: &'a Queue<T>,
    priority: Priority,
    id: u64,
}

impl<T: Task> WaitingJob<'_, T> {
    fn withdraw(&self) -> Option<Job<T>> {
        let mut state = self.queue.lock();
        let jobs = &mut state.jobs[self.priority as usize];
        let index = jobs.iter().position(|job| job.id == self.id)?;
        let job = jobs.remove(index);
        if let Some(job) = &job {
            state.shares.refund(job.permit.client(), job.permit.work());
        }
        self.queue.metrics.queue_depth.set(state.depth() as i64);
        job
    }
}

impl<T: Task> Drop for WaitingJob<'_, T> {
    fn drop(&mut self) {
        // Dropping the job's permit counts its image as cancelled.
        drop(self.withdraw());
    }
}
