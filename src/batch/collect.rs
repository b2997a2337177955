//! Forming batches: what an idle worker takes.

use tokio::time::Instant;

use super::queue::Job;
use super::{JobError, Queue};

impl Queue {
    /// Waits for work and takes what is there, at most `max` jobs, oldest first. Jobs whose client is gone or whose
    /// deadline has passed are dropped on the way and cost nothing. `None` when the queue is closed and empty.
    pub(super) async fn take(&self, max: usize) -> Option<Vec<Job>> {
        loop {
            // Made before looking, so that closing the queue cannot fall between the look and the wait.
            let ready = self.ready.notified();
            match self.take_ready(max) {
                Taken::Jobs(jobs) => return Some(jobs),
                Taken::Closed => return None,
                Taken::Nothing => ready.await,
            }
        }
    }

    fn take_ready(&self, max: usize) -> Taken {
        let now = Instant::now();
        let mut batch = Vec::new();
        let mut expired = Vec::new();
        let (left, closed) = {
            let mut state = self.lock();
            while batch.len() < max {
                let Some(job) = state.jobs.pop_front() else { break };
                if job.reply.is_closed() {
                    // A client that waits until its deadline and one that left look the same from here.
                    if job.deadline <= now { &self.metrics.expired } else { &self.metrics.cancelled }.inc();
                } else if job.deadline <= now {
                    self.metrics.expired.inc();
                    expired.push(job);
                } else {
                    batch.push(job);
                }
            }
            self.metrics.queue_depth.set(state.jobs.len() as i64);
            (state.jobs.len(), state.closed)
        };
        for job in expired {
            job.answer(Err(JobError::Expired));
        }
        if !batch.is_empty() {
            if left > 0 {
                // Wake-ups are not counted one to one when several jobs arrive before a worker looks.
                self.ready.notify_one();
            }
            return Taken::Jobs(batch);
        }
        if closed { Taken::Closed } else { Taken::Nothing }
    }
}

enum Taken {
    Jobs(Vec<Job>),
    Nothing,
    Closed,
}
