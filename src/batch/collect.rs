//! Forming batches: what an idle worker takes.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::queue::{Job, State};
use super::{JobError, Queue};
use crate::cores::{Held, Priority, Rank, Work};
use crate::telemetry::Stage;

/// How a worker forms batches.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    /// Rows that a run takes at most.
    pub max: usize,
    /// How long the oldest row waits for a batch to fill. Zero, unless throughput is worth more than time.
    pub delay: Duration,
    /// Cores that a run computes on.
    pub cores: usize,
}

/// What there is to take.
enum Look {
    /// Rows, of which the first has waited long enough.
    Rows(Rank),
    /// Rows that wait for company until then.
    Early(Instant),
    Nothing,
    Closed,
}

impl<R> Queue<R> {
    /// Waits for work, then for cores, and takes what is there by then: the more urgent first, then the oldest. `None` when
    /// the queue is closed and empty.
    pub(super) async fn take(&self, batching: Batching) -> Option<(Vec<Job<R>>, Held)> {
        loop {
            // Made before looking, so that closing the queue cannot fall between the look and the wait.
            let more = self.ready.notified();
            let rank = match self.look(batching) {
                Look::Rows(rank) => rank,
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
                // Wake-ups are not counted one to one when several rows arrive before a worker looks.
                self.ready.notify_one();
            }
            if !jobs.is_empty() {
                return Some((jobs, held));
            }
        }
    }

    fn look(&self, batching: Batching) -> Look {
        let state = self.lock();
        let Some(oldest) = state.jobs.iter().filter_map(|jobs| jobs.front()).map(|job| job.enqueued_at).min() else {
            return if state.closed { Look::Closed } else { Look::Nothing };
        };
        let full = state.depth() >= batching.max;
        let until = oldest + batching.delay;
        if !full && !state.closed && until > Instant::now() {
            return Look::Early(until);
        }
        let priority = if state.jobs[0].is_empty() { Priority::Background } else { Priority::Interactive };
        Look::Rows(Rank { priority, work: if full { Work::FullBatch } else { Work::Batch } })
    }

    /// Takes up to `max` rows, but no more than a fair share if `spare` more workers have a core to take some, too. Says how
    /// many are left.
    fn cut(&self, max: usize, spare: usize) -> (Vec<Job<R>>, usize) {
        let now = Instant::now();
        let mut batch = Vec::new();
        let mut expired = Vec::new();
        let left = {
            let mut state = self.lock();
            let share = state.depth().div_ceil(spare + 1).min(max);
            while batch.len() < share
                && let Some(mut job) = state.next()
            {
                // Whoever waits withdraws his row when he leaves and when its time is over; this is about those who are
                // just doing so.
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

impl<R> State<R> {
    fn next(&mut self) -> Option<Job<R>> {
        self.jobs.iter_mut().find_map(std::collections::VecDeque::pop_front)
    }
}
