//! CPU cores as tokens. Each computing thread holds one token, so there are at most 25 % more compute threads than
//! cores.
//!
//! More threads would only share the cores' time: no image would be finished earlier, and each one later. The few
//! extra tokens keep every core busy while a token passes from one thread to another. The tokens also decide what a
//! free core does next ([`Rank`]): a full batch runs before an image is decoded, and an image is decoded before a
//! partial batch runs. So batches grow while there are images left to decode, and no timer is needed.
//!
//! This module orders work; it uses no timers. It counts how often a waiting rank is passed over. After sixteen
//! grants to better ranks, or fewer if they are expensive, that rank is next: a flood of one kind of work slows the
//! other kinds down and stops none of them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::fair_share::{Client, FairOrder};

/// Priority of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Priority {
    /// A user waits for the answer.
    #[default]
    Interactive,
    /// Runs on the cores that interactive work leaves free.
    Background,
}

impl Priority {
    /// Both priorities, the more urgent first.
    pub const ALL: [Self; 2] = [Self::Interactive, Self::Background];
}

/// The purpose of a core, in the order in which cores are granted within a priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Runs a batch with its maximum number of rows.
    FullBatch,
    /// Turns an image file into a row.
    Decode,
    /// Runs a batch with fewer rows than its maximum.
    Batch,
}

/// Position of a kind of work in the order of grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Priority of the request; compared first.
    pub priority: Priority,
    /// Kind of work; compared second.
    pub work: Work,
}

impl Rank {
    const COUNT: usize = 6;

    fn index(self) -> usize {
        3 * self.priority as usize + self.work as usize
    }
}

/// Number of grants to better ranks that a waiting rank lets pass before it is next.
const MAX_PASSES: u32 = 16;

/// Time that counts as one grant, the time of an ordinary photograph. Every grant counts at least once; expensive work
/// counts as several grants.
const GRANT_TIME: Duration = Duration::from_micros(1500);

/// The cores available for computing.
#[derive(Debug)]
pub struct Cores {
    total: usize,
    /// Number of tokens: one per core, and a few more so that no core waits while a token passes to another thread.
    tokens: usize,
    state: Mutex<CoresState>,
}

#[derive(Debug)]
struct CoresState {
    free: usize,
    /// One queue per rank, ordered by start tag, then first come, first served.
    waiting: [VecDeque<Waiter>; Rank::COUNT],
    shares: FairOrder,
    /// How often each rank has been passed over since its last grant.
    passed_over: [u32; Rank::COUNT],
    /// Cores granted for running batches, whose tasks have not woken up yet to claim them.
    unclaimed: usize,
    next_id: u64,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    /// Start tag of fair queueing among the clients.
    tag: u64,
    /// Number of grants that this work counts as.
    weight: u32,
    cores: usize,
    granted: oneshot::Sender<()>,
}

/// Cores leased to a computing thread. Released when dropped.
#[derive(Debug)]
pub struct CoreLease {
    pool: Arc<Cores>,
    count: usize,
    /// Cores left for running other batches at the moment of the grant.
    spare: usize,
}

impl CoreLease {
    /// Cores on which other batches could run when this lease was granted: cores granted to batches at the same time,
    /// and free cores for which no work waited.
    #[must_use]
    pub fn spare(&self) -> usize {
        self.spare
    }
}

impl Drop for CoreLease {
    fn drop(&mut self) {
        self.pool.release(self.count);
    }
}

impl Cores {
    /// Creates `total` cores, all free, with one token each.
    #[must_use]
    pub fn new(total: usize) -> Arc<Self> {
        Self::with_tokens(total, total)
    }

    /// Creates `total` cores with a quarter more tokens than cores. A thread takes a moment to wake up after a grant;
    /// the extra tokens keep the core busy meanwhile.
    #[must_use]
    pub fn oversubscribed(total: usize) -> Arc<Self> {
        Self::with_tokens(total, total + total.div_ceil(4))
    }

    fn with_tokens(total: usize, tokens: usize) -> Arc<Self> {
        let state = CoresState {
            free: tokens,
            waiting: Default::default(),
            shares: FairOrder::default(),
            passed_over: [0; Rank::COUNT],
            unclaimed: 0,
            next_id: 0,
        };
        Arc::new(Self { total, tokens, state: Mutex::new(state) })
    }

    /// Number of cores.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total
    }

    /// Number of tokens in use.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.tokens - self.lock().free
    }

    /// Waits for `count` cores, at most [`Cores::total`]. Dropping the future cancels the request.
    pub async fn acquire(self: &Arc<Self>, rank: Rank, count: usize) -> CoreLease {
        self.wait_for(rank, count, None).await
    }

    /// Waits for one core for a client's work, which is expected to take `cost`. Within a rank, clients get equal
    /// shares of the cores' time: a client that has requested much work waits behind its own work and does not delay
    /// other clients.
    pub async fn acquire_for(self: &Arc<Self>, rank: Rank, client: Client, cost: Duration) -> CoreLease {
        self.wait_for(rank, 1, Some((client, cost))).await
    }

    /// Charges a client for core time beyond the expected cost of its work.
    pub fn charge(&self, client: Client, extra: Duration) {
        self.lock().shares.charge(client, extra.as_nanos() as u64);
    }

    async fn wait_for(self: &Arc<Self>, rank: Rank, count: usize, work: Option<(Client, Duration)>) -> CoreLease {
        let count = count.min(self.total);
        let (granted, grant) = oneshot::channel();
        let mut ticket = {
            let mut state = self.lock();
            let id = state.next_id;
            state.next_id += 1;
            let tag = state.shares.tag(work.map(|(client, cost)| (client, cost.as_nanos() as u64)));
            let waiting = &mut state.waiting[rank.index()];
            let position = waiting.partition_point(|waiter| waiter.tag <= tag);
            let cost = work.map_or(GRANT_TIME, |(_, cost)| cost.max(GRANT_TIME));
            let weight = (cost.as_nanos() / GRANT_TIME.as_nanos()).min(u128::from(MAX_PASSES)) as u32;
            waiting.insert(position, Waiter { id, tag, weight, cores: count, granted });
            self.grant(&mut state);
            Ticket { cores: self, rank, id, count, work, grant, claimed: false }
        };
        // The sender stays in the queue until it sends.
        let _ = (&mut ticket.grant).await;
        ticket.claimed = true;
        let mut state = self.lock();
        state.claim(rank, count);
        let is_contended = state.waiting.iter().any(|rank| !rank.is_empty());
        let spare = state.unclaimed + if is_contended { 0 } else { state.free };
        CoreLease { pool: Arc::clone(self), count, spare }
    }

    fn release(&self, count: usize) {
        let mut state = self.lock();
        state.free += count;
        self.grant(&mut state);
    }

    /// Grants free cores to the next waiters.
    fn grant(&self, state: &mut CoresState) {
        while let Some(rank) = state.next_rank() {
            // A waiter that needs more cores than are free blocks all others: if smaller requests overtook it, it
            // could wait forever.
            let Some(waiter) = state.waiting[rank].pop_front_if(|waiter| waiter.cores <= state.free) else { break };
            // The receiver exists: a ticket removes its waiter before it goes away.
            let _ = waiter.granted.send(());
            state.shares.serve(waiter.tag);
            state.free -= waiter.cores;
            state.unclaimed += if is_batch(rank) { waiter.cores } else { 0 };
            state.passed_over[rank] = 0;
            for later in rank + 1..Rank::COUNT {
                state.passed_over[later] =
                    if state.waiting[later].is_empty() { 0 } else { state.passed_over[later] + waiter.weight };
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, CoresState> {
        self.state.lock()
    }
}

/// Runs work that may take milliseconds on the current thread of the async runtime. If the work is `large`, the
/// thread first hands its other tasks to another thread.
pub fn run_in_place<O>(large: bool, work: impl FnOnce() -> O) -> O {
    use tokio::runtime::{Handle, RuntimeFlavor};
    // A runtime with one thread has no other thread to hand tasks to.
    let is_multi_threaded =
        || Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    match large && is_multi_threaded() {
        true => tokio::task::block_in_place(work),
        false => work(),
    }
}

/// How far a thread's priority is lowered, in steps of Linux's nice value: each takes about a fifth of the thread's
/// weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Niceness(i32);

impl Niceness {
    /// For threads that decode small images or run the model: about a third of the weight of other threads. Threads
    /// that move bytes need a core rarely and for a moment, and answers would wait for them behind milliseconds of
    /// arithmetic.
    pub const COMPUTE: Self = Self(5);
    /// For threads that decode medium images: half the weight of [`Niceness::COMPUTE`]. Clients wait for these
    /// images, too.
    pub const MEDIUM: Self = Self(8);
    /// For threads that decode large images: a tenth of the weight of [`Niceness::COMPUTE`].
    pub const LARGE: Self = Self(15);
}

/// Lowers the scheduling priority of the calling thread. Only the first call on a thread has an effect, since nice
/// values add up.
pub fn lower_priority(niceness: Niceness) {
    #[cfg(target_os = "linux")]
    {
        thread_local!(static LOWERED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
        if !LOWERED.replace(true)
            && let Err(error) = rustix::process::nice(niceness.0)
        {
            tracing::debug!(%error, niceness = niceness.0, "cannot lower the priority of a computing thread");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = niceness;
}

/// Whether the rank of this index is for running batches.
fn is_batch(rank: usize) -> bool {
    rank % 3 != Work::Decode as usize
}

impl CoresState {
    fn claim(&mut self, rank: Rank, count: usize) {
        self.unclaimed -= if is_batch(rank.index()) { count } else { 0 };
    }

    /// Index of the next rank to serve: the first that has been passed over too often, else the best that has a waiter.
    fn next_rank(&self) -> Option<usize> {
        let has_waiter = |rank: &usize| !self.waiting[*rank].is_empty();
        let overdue = (0..Rank::COUNT).filter(has_waiter).find(|rank| self.passed_over[*rank] >= MAX_PASSES);
        overdue.or_else(|| (0..Rank::COUNT).find(has_waiter))
    }
}

/// A position in the queue. If its future is dropped, it leaves the queue, or releases cores that were granted and
/// not yet claimed.
struct Ticket<'a> {
    cores: &'a Cores,
    rank: Rank,
    id: u64,
    count: usize,
    work: Option<(Client, Duration)>,
    grant: oneshot::Receiver<()>,
    claimed: bool,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.claimed {
            return;
        }
        let mut state = self.cores.lock();
        let rank = self.rank.index();
        match state.waiting[rank].iter().position(|waiter| waiter.id == self.id) {
            Some(position) => {
                drop(state.waiting[rank].remove(position));
                if let Some((client, cost)) = self.work {
                    state.shares.refund(client, cost.as_nanos() as u64);
                }
            }
            None => {
                state.claim(self.rank, self.count);
                state.free += self.count;
            }
        }
        // This ticket may have blocked those behind it.
        self.cores.grant(&mut state);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const FULL: Rank = Rank { priority: Priority::Interactive, work: Work::FullBatch };
    const DECODE: Rank = Rank { priority: Priority::Interactive, work: Work::Decode };
    const BATCH: Rank = Rank { priority: Priority::Interactive, work: Work::Batch };
    const BACKGROUND: Rank = Rank { priority: Priority::Background, work: Work::FullBatch };

    fn cores(total: usize) -> Arc<Cores> {
        Cores::new(total)
    }

    /// Spawns a task that acquires a core and then logs its name.
    fn queue(cores: &Arc<Cores>, rank: Rank, name: &'static str, log: &Arc<Mutex<Vec<&'static str>>>) {
        let (cores, log) = (Arc::clone(cores), Arc::clone(log));
        tokio::spawn(async move {
            let lease = cores.acquire(rank, 1).await;
            log.lock().push(name);
            tokio::task::yield_now().await;
            drop(lease);
        });
    }

    async fn settle() {
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn no_more_cores_are_leased_than_there_are() {
        let cores = cores(2);
        let first = cores.acquire(DECODE, 1).now_or_never().unwrap();
        let second = cores.acquire(BATCH, 1).now_or_never().unwrap();
        assert!(cores.acquire(FULL, 1).now_or_never().is_none());
        assert_eq!((first.spare(), second.spare(), cores.busy()), (1, 0, 2));
        drop(first);
        assert!(cores.acquire(DECODE, 1).now_or_never().is_some());
        drop(second);
        assert_eq!(cores.busy(), 0);
    }

    #[tokio::test]
    async fn a_free_core_goes_to_the_best_rank_and_within_it_to_the_first() {
        let cores = cores(1);
        let log = Arc::default();
        let lease = cores.acquire(DECODE, 1).await;
        let waiters = [
            (BACKGROUND, "background"),
            (BATCH, "batch"),
            (DECODE, "one"),
            (DECODE, "two"),
            (FULL, "full"),
            (BATCH, "batch 2"),
        ];
        for (rank, name) in waiters {
            queue(&cores, rank, name, &log);
            settle().await;
        }
        drop(lease);
        settle().await;
        assert_eq!(*log.lock(), ["full", "one", "two", "batch", "batch 2", "background"]);
    }

    #[tokio::test]
    async fn clients_share_the_cores_regardless_of_the_order_of_arrival() {
        let cores = cores(1);
        let log: Arc<Mutex<Vec<&str>>> = Arc::default();
        let lease = cores.acquire(DECODE, 1).await;
        let client = |last: u8| Client::of(std::net::IpAddr::from([10, 0, 0, last]));
        for (last, name, cost) in
            [(1, "a1", 10), (1, "a2", 10), (1, "a3", 10), (2, "b1", 5), (2, "b2", 5), (2, "b3", 5), (3, "c1", 1)]
        {
            let (cores, log) = (Arc::clone(&cores), Arc::clone(&log));
            tokio::spawn(async move {
                let _lease = cores.acquire_for(DECODE, client(last), Duration::from_millis(cost)).await;
                log.lock().push(name);
            });
            settle().await;
        }
        drop(lease);
        settle().await;
        assert_eq!(*log.lock(), ["a1", "b1", "c1", "b2", "a2", "b3", "a3"]);
    }

    #[tokio::test]
    async fn a_rank_that_is_passed_over_too_often_is_served() {
        let cores = cores(1);
        let log = Arc::default();
        let lease = cores.acquire(DECODE, 1).await;
        queue(&cores, BACKGROUND, "background", &log);
        settle().await;
        for _ in 0..2 * MAX_PASSES {
            queue(&cores, DECODE, "decode", &log);
        }
        settle().await;
        drop(lease);
        settle().await;
        let log = log.lock();
        assert_eq!(log.iter().position(|name| *name == "background"), Some(MAX_PASSES as usize));
        assert_eq!(log.len(), 2 * MAX_PASSES as usize + 1);
    }

    #[tokio::test]
    async fn a_cancelled_request_leaves_nothing_behind() {
        let cores = cores(1);
        let lease = cores.acquire(DECODE, 1).await;
        let mut waiting = Box::pin(cores.acquire(FULL, 1));
        assert!((&mut waiting).now_or_never().is_none());
        drop(waiting);
        // Granted, but dropped before it claimed the core.
        let mut granted = Box::pin(cores.acquire(FULL, 1));
        assert!((&mut granted).now_or_never().is_none());
        drop(lease);
        assert_eq!(cores.busy(), 1);
        drop(granted);
        assert_eq!(cores.busy(), 0);
        assert!(cores.acquire(BATCH, 1).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_request_for_several_cores_is_not_overtaken_by_a_request_for_one() {
        let cores = cores(2);
        let log = Arc::default();
        let lease = cores.acquire(DECODE, 1).await;
        let mut wide = Box::pin(cores.acquire(FULL, 2));
        assert!((&mut wide).now_or_never().is_none());
        queue(&cores, DECODE, "narrow", &log);
        settle().await;
        assert!(log.lock().is_empty());
        drop(lease);
        drop(wide.now_or_never().unwrap());
        settle().await;
        assert_eq!(*log.lock(), ["narrow"]);
        // A request for more cores than there are gets all of them.
        assert!(cores.acquire(FULL, 99).now_or_never().is_some());
    }
}
