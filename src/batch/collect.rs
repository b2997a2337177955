//! Forming batches: what an idle worker takes.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::queue::{Job, State};
use super::{JobError, Queue, Task};
use crate::cores::{Held, Priority, Rank, Work};
use crate::telemetry::Stage;

/// How a worker forms batches.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    /// Tasks that a run takes at most.
    pub max: usize,
    /// How long the oldest task waits for a batch to fill. Zero, unless throughput is worth more than time.
    pub delay: Duration,
    /// Cores that a run computes on.
    pub cores: usize,
}

/// What there is to take.
enum Look {
    /// Tasks, of which the first has waited long enough.
    Tasks(Rank),
    /// Tasks that wait for company until then.
    Early(Instant),
    Nothing,
    Closed,
}

impl<T: Task> Queue<T> {
    /// Waits for work, then for cores, and takes what is there by then: the more urgent first, then the oldest. `None` when
    /// the queue is closed and empty.
    pub(super) async fn take(&self, batching: Batching) -> Option<(Vec<Job<T>>, Held)> {
        loop {
            // Made before looking, so that closing the queue cannot fall between the look and the wait.
            let more = self.ready.notified();
            let rank = match self.look(batching) {
                Look::Tasks(rank) => rank,
                Look::Early(until) => {
                    tokio::select! { () = more => {}, () = sleep_until(until) => {} }
                    continue;
                }
                Look::Nothing => {
                    more.await;
                    continue;
                }
                Look::Closed => return None,
            };
            let held = tokio::select! {
                biased;
                held = self.cores.take(rank, batching.cores) => held,
                // What has come may have made the batch full, or urgent.
                () = more => continue,
            };
            let (jobs, left) = self.cut(batching.max, held.spare() / batching.cores.max(1));
            if left > 0 {
                // Wake-ups are not counted one to one when several tasks arrive before a worker looks.
                self.ready.notify_one();
            }
            if !jobs.is_empty() {
                return Some((jobs, held));
            }
        }
    }

    fn look(&self, batching: Batching) -> Look {
        let state = self.lock();
        let Some(oldest) = state.jobs.iter().flatten().map(|job| job.enqueued_at).min() else {
            return if state.closed { Look::Closed } else { Look::Nothing };
        };
        let full = state.head().is_some_and(|head| state.fitting(head) >= head.task.most_together().min(batching.max));
        let until = oldest + batching.delay;
        if !full && !state.closed && until > Instant::now() {
            return Look::Early(until);
        }
        let priority = if state.jobs[0].is_empty() { Priority::Background } else { Priority::Interactive };
        Look::Tasks(Rank { priority, work: if full { Work::FullBatch } else { Work::Batch } })
    }

    /// Takes up to `max` tasks that fit each other, but no more than a fair share if `spare` more workers have a core to take
    /// some, too. Says how many are left, of whatever sort.
    fn cut(&self, max: usize, spare: usize) -> (Vec<Job<T>>, usize) {
        let now = Instant::now();
        let mut batch: Vec<Job<T>> = Vec::new();
        let mut expired = Vec::new();
        let left = {
            let mut state = self.lock();
            let share = state
                .head()
                .map_or(0, |head| state.fitting(head).div_ceil(spare + 1).min(max).min(head.task.most_together()));
            while batch.len() < share
                && let Some(mut job) = state.next(batch.first().map(|job| &job.task))
            {
                // Whoever waits withdraws his task when he leaves and when its time is over; this is about those who are
                // just doing so.
                state.shares.serve(job.tag);
                if job.deadline <= now {
                    expired.push(job);
                } else if !job.reply.is_closed() {
                    job.permit.reach(Stage::Infer);
                    batch.push(job);
                }
            }
            self.metrics.queue_depth.set(state.depth() as i64);
            state.depth()
        };
        for job in expired {
            job.answer(Err(JobError::Expired));
        }
        (batch, left)
    }
}

impl<T: Task> State<T> {
    /// The job whose turn it is.
    fn head(&self) -> Option<&Job<T>> {
        self.jobs.iter().find_map(VecDeque::front)
    }

    /// How many jobs, itself among them, could run with one.
    fn fitting(&self, job: &Job<T>) -> usize {
        self.jobs.iter().flatten().filter(|other| other.task.fits(&job.task)).count()
    }

    /// Takes out the first job; with `like`, the first that fits it.
    fn next(&mut self, like: Option<&T>) -> Option<Job<T>> {
        self.jobs.iter_mut().find_map(|jobs| {
            let at = jobs.iter().position(|job| like.is_none_or(|like| like.fits(&job.task)))?;
            jobs.remove(at)
        })
    }
}
