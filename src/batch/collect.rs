//! Forming batches: the tasks that an idle worker takes.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::queue::{Job, QueueState};
use super::{JobError, Queue, Task};
use crate::cores::{CoreLease, Priority, Rank, Work};
use crate::telemetry::Stage;

/// How a worker forms batches.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    /// Number of tasks that one run takes at most.
    pub max: usize,
    /// How long the oldest task waits for a batch to fill. Zero, unless throughput matters more than latency.
    pub delay: Duration,
    /// Number of cores that one run computes on.
    pub cores: usize,
}

/// Whether the queue has tasks to take.
enum Availability {
    /// Tasks, the first of which has waited long enough; the rank to acquire cores with.
    Ready(Rank),
    /// Tasks that wait until this time for a batch to fill.
    Filling(Instant),
    /// No tasks.
    Empty,
    /// No tasks, and none will come.
    Closed,
}

impl<T: Task> Queue<T> {
    /// Waits for tasks, then for cores, and takes the tasks that are there by then: the more urgent first, then the
    /// oldest. `None` when the queue is closed and empty.
    pub(super) async fn next_batch(&self, batching: Batching) -> Option<(Vec<Job<T>>, CoreLease)> {
        loop {
            // Created before the check, so that closing the queue between the check and the wait is noticed.
            let more = self.ready.notified();
            let rank = match self.availability(batching) {
                Availability::Ready(rank) => rank,
                Availability::Filling(until) => {
                    tokio::select! { () = more => {}, () = sleep_until(until) => {} }
                    continue;
                }
                Availability::Empty => {
                    more.await;
                    continue;
                }
                Availability::Closed => return None,
            };
            let lease = tokio::select! {
                biased;
                lease = self.cores.acquire(rank, batching.cores) => lease,
                // A new task may have made the batch full, or urgent.
                () = more => continue,
            };
            let (jobs, remaining) = self.take_jobs(batching.max, lease.spare() / batching.cores.max(1));
            if remaining > 0 {
                // When several tasks arrive before a worker looks, their wake-ups become one.
                self.ready.notify_one();
            }
            if !jobs.is_empty() {
                return Some((jobs, lease));
            }
        }
    }

    fn availability(&self, batching: Batching) -> Availability {
        let state = self.lock();
        let Some(oldest) = state.jobs.iter().flatten().map(|job| job.enqueued_at).min() else {
            return if state.closed { Availability::Closed } else { Availability::Empty };
        };
        let is_full = |head: &Job<T>| state.count_fitting(head) >= head.task.max_batch().min(batching.max);
        let full = state.head().is_some_and(is_full);
        let until = oldest + batching.delay;
        if !full && !state.closed && until > Instant::now() {
            return Availability::Filling(until);
        }
        let priority = if state.jobs[0].is_empty() { Priority::Background } else { Priority::Interactive };
        Availability::Ready(Rank { priority, work: if full { Work::FullBatch } else { Work::Batch } })
    }

    /// Takes up to `max` tasks that fit each other, but only a fair share of them if `spare` more workers have a core
    /// to take some, too. Also returns how many tasks of any kind remain.
    pub(super) fn take_jobs(&self, max: usize, spare: usize) -> (Vec<Job<T>>, usize) {
        let now = Instant::now();
        let mut batch: Vec<Job<T>> = Vec::new();
        let (mut expired, mut abandoned) = (Vec::new(), Vec::new());
        let remaining = {
            let mut state = self.lock();
            let share_of = |head: &Job<T>| state.count_fitting(head).div_ceil(spare + 1);
            let share = state.head().map_or(0, |head| share_of(head).min(max).min(head.task.max_batch()));
            while batch.len() < share
                && let Some(mut job) = state.remove_first(batch.first().map(|job| &job.task))
            {
                // A caller withdraws its task when it leaves and when its deadline passes. The two checks below are for
                // callers that are doing so at this moment.
                state.shares.serve(job.tag);
                if job.deadline <= now {
                    expired.push(job);
                } else if job.reply.is_closed() {
                    // Dropped below: a permit locks the counter of work in flight when it is dropped, and the lock of
                    // the queue's state must not be held then.
                    abandoned.push(job);
                } else {
                    job.permit.reach(Stage::Infer);
                    batch.push(job);
                }
            }
            self.metrics.queue_depth.set(state.depth() as i64);
            state.depth()
        };
        drop(abandoned);
        for job in expired {
            job.answer(Err(JobError::Expired));
        }
        (batch, remaining)
    }
}

impl<T: Task> QueueState<T> {
    /// The job whose turn it is.
    fn head(&self) -> Option<&Job<T>> {
        self.jobs.iter().find_map(VecDeque::front)
    }

    /// Number of jobs that could run together with `job`, itself included.
    fn count_fitting(&self, job: &Job<T>) -> usize {
        self.jobs.iter().flatten().filter(|other| other.task.fits(&job.task)).count()
    }

    /// Removes the first job; with `like`, the first that fits it.
    fn remove_first(&mut self, like: Option<&T>) -> Option<Job<T>> {
        self.jobs.iter_mut().find_map(|jobs| {
            let index = jobs.iter().position(|job| like.is_none_or(|like| like.fits(&job.task)))?;
            jobs.remove(index)
        })
    }
}
