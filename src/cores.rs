//! The cores as tokens: whoever computes holds one, so that hardly more threads compute than there are cores.
//!
//! More would only slice time between them: each image would be finished later, none earlier. A few more there are, so that
//! no core stands idle while a token changes hands. The tokens also say what a core that becomes free does next ([`Rank`]): a full
//! batch runs before another image is decoded, and an image is decoded before a batch runs that is not full. So batches grow just
//! as far as there is work to grow by, and nothing waits by a clock.
//!
//! This module orders work; it uses no timers. What a rank is passed over for is counted, and after sixteen grants to better
//! ranks, fewer if they are expensive, it is its turn: a flood of one kind of work slows every other kind down and stops none.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::fair_share::{Client, FairOrder};

/// Whose work it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Priority {
    /// Somebody waits for it.
    #[default]
    Interactive,
    /// It gets the cores that interactive work leaves.
    Background,
}

impl Priority {
    /// Both, the more urgent first.
    pub const ALL: [Self; 2] = [Self::Interactive, Self::Background];
}

/// What a core is wanted for, in the order in which cores are given within a priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// To run as many rows as a batch takes.
    FullBatch,
    /// To make a row out of an image file.
    Prepare,
    /// To run fewer rows than a batch takes.
    Batch,
}

/// A place in the order of those who want a core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Whose work it is; counts first.
    pub priority: Priority,
    /// What work it is.
    pub work: Work,
}

impl Rank {
    const COUNT: usize = 6;

    fn index(self) -> usize {
        3 * self.priority as usize + self.work as usize
    }
}

/// Grants to better ranks that a waiting rank lets pass before its turn.
const PATIENCE: u32 = 16;

/// What a grant counts for at least, and what one of an ordinary photograph takes: expensive work counts for several grants.
const GRANT: Duration = Duration::from_micros(1500);

/// The cores that may compute.
#[derive(Debug)]
pub struct Cores {
    total: usize,
    /// What is given out: one a core, and a few so that no core waits while another token changes hands.
    tokens: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// By rank; within a rank by their start tags, then first come, first served.
    waiting: [VecDeque<Waiter>; Rank::COUNT],
    shares: FairOrder,
    /// How often each rank has been passed over since it last had its turn.
    passed: [u32; Rank::COUNT],
    /// Cores given for running batches, of which the receivers have not noticed yet.
    unnoticed: usize,
    next_id: u64,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    /// Where it stands among the clients' work.
    tag: u64,
    /// The grants that it counts for.
    weight: u32,
    cores: usize,
    granted: oneshot::Sender<()>,
}

/// Some cores, held by whoever computes; given back when dropped.
#[derive(Debug)]
pub struct Held {
    from: Arc<Cores>,
    count: usize,
    /// Cores left for others to run batches on at that moment.
    spare: usize,
}

impl Held {
    /// Cores that others could run batches on when these were given: given to them at the same time, or free and wanted by
    /// nobody.
    #[must_use]
    pub fn spare(&self) -> usize {
        self.spare
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.from.give_back(self.count);
    }
}

impl Cores {
    /// So many cores, all free.
    #[must_use]
    pub fn new(total: usize) -> Arc<Self> {
        Self::with_tokens(total, total)
    }

    /// The same with a quarter more tokens than cores: a thread that is told to go on takes a moment to wake up, and a core
    /// should not stand idle for it.
    #[must_use]
    pub fn oversubscribed(total: usize) -> Arc<Self> {
        Self::with_tokens(total, total + total.div_ceil(4))
    }

    fn with_tokens(total: usize, tokens: usize) -> Arc<Self> {
        let state = State {
            free: tokens,
            waiting: Default::default(),
            shares: FairOrder::default(),
            passed: [0; Rank::COUNT],
            unnoticed: 0,
            next_id: 0,
        };
        Arc::new(Self { total, tokens, state: Mutex::new(state) })
    }

    /// How many there are.
    #[must_use]
    pub fn total(&self) -> usize {
        self.total
    }

    /// How many tokens are held.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.tokens - self.lock().free
    }

    /// Waits for `count` cores, at most all there are. Dropping the future gives up the place.
    pub async fn take(self: &Arc<Self>, rank: Rank, count: usize) -> Held {
        self.wait_for(rank, count, None).await
    }

    /// Waits for a core for work that one client has asked for and that is expected to take `cost`. Within a rank, clients get equal
    /// shares of the cores' time: whoever has asked for much waits behind his own work, not everybody else.
    pub async fn take_for(self: &Arc<Self>, rank: Rank, client: Client, cost: Duration) -> Held {
        self.wait_for(rank, 1, Some((client, cost))).await
    }

    /// Notes that work of a client took more of the cores' time than it was expected to.
    pub fn charge(&self, client: Client, more: Duration) {
        self.lock().shares.charge(client, more.as_nanos() as u64);
    }

    async fn wait_for(self: &Arc<Self>, rank: Rank, count: usize, work: Option<(Client, Duration)>) -> Held {
        let count = count.min(self.total);
        let (granted, grant) = oneshot::channel();
        let mut place = {
            let mut state = self.lock();
            let id = state.next_id;
            state.next_id += 1;
            let tag = state.shares.tag(work.map(|(client, cost)| (client, cost.as_nanos() as u64)));
            let waiting = &mut state.waiting[rank.index()];
            let at = waiting.partition_point(|waiter| waiter.tag <= tag);
            let cost = work.map_or(GRANT, |(_, cost)| cost.max(GRANT));
            let weight = (cost.as_nanos() / GRANT.as_nanos()).min(u128::from(PATIENCE)) as u32;
            waiting.insert(at, Waiter { id, tag, weight, cores: count, granted });
            self.grant(&mut state);
            Place { cores: self, rank, id, count, work, grant, settled: false }
        };
        // The sender stays in the list until it sends.
        let _ = (&mut place.grant).await;
        place.settled = true;
        let mut state = self.lock();
        state.notice(rank, count);
        let wanted = state.waiting.iter().any(|rank| !rank.is_empty());
        let spare = state.unnoticed + if wanted { 0 } else { state.free };
        Held { from: Arc::clone(self), count, spare }
    }

    fn give_back(&self, count: usize) {
        let mut state = self.lock();
        state.free += count;
        self.grant(&mut state);
    }

    /// Gives free cores to those whose turn it is.
    fn grant(&self, state: &mut State) {
        while let Some(rank) = state.turn() {
            // Who wants more cores than are free waits for them at the head of all: smaller wishes that slip past would
            // keep it waiting for ever.
            let Some(waiter) = state.waiting[rank].pop_front_if(|waiter| waiter.cores <= state.free) else { break };
            // Whoever gives up his place takes it off the list first.
            let _ = waiter.granted.send(());
            state.shares.serve(waiter.tag);
            state.free -= waiter.cores;
            state.unnoticed += if runs(rank) { waiter.cores } else { 0 };
            state.passed[rank] = 0;
            for later in rank + 1..Rank::COUNT {
                state.passed[later] =
                    if state.waiting[later].is_empty() { 0 } else { state.passed[later] + waiter.weight };
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that runs under the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does work that may take milliseconds on a thread of the runtime, which hands its other tasks over first if the work is `large`.
pub fn in_place<O>(large: bool, work: impl FnOnce() -> O) -> O {
    use tokio::runtime::{Handle, RuntimeFlavor};
    // On a runtime of one thread there is nobody to hand over to.
    let several = || Handle::try_current().is_ok_and(|runtime| runtime.runtime_flavor() == RuntimeFlavor::MultiThread);
    match large && several() {
        true => tokio::task::block_in_place(work),
        false => work(),
    }
}

/// Has the system prefer other threads to the calling one, once for all: those that move bytes need a core rarely and for a
/// moment, and answers would wait for them behind milliseconds of arithmetic.
pub fn give_way() {
    thread_local!(static GAVE: Cell<bool> = const { Cell::new(false) });
    #[cfg(target_os = "linux")]
    if !GAVE.replace(true)
        && let Err(error) = rustix::process::nice(NICENESS)
    {
        tracing::debug!(%error, "a thread that computes keeps its priority");
    }
}

/// By how much: about a third of the weight of other threads.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 5;

/// Whether a rank is one of running batches.
fn runs(rank: usize) -> bool {
    rank % 3 != Work::Prepare as usize
}

impl State {
    fn notice(&mut self, rank: Rank, count: usize) {
        self.unnoticed -= if runs(rank.index()) { count } else { 0 };
    }

    /// The rank whose turn it is: one that has been patient enough, else the best that somebody waits in.
    fn turn(&self) -> Option<usize> {
        let waited = |rank: &usize| !self.waiting[*rank].is_empty();
        let patient = (0..Rank::COUNT).filter(waited).find(|rank| self.passed[*rank] >= PATIENCE);
        patient.or_else(|| (0..Rank::COUNT).find(waited))
    }
}

/// A place in the list; gives it up, or gives back what was granted to it unseen, when its future is dropped.
struct Place<'a> {
    cores: &'a Cores,
    rank: Rank,
    id: u64,
    count: usize,
    work: Option<(Client, Duration)>,
    grant: oneshot::Receiver<()>,
    settled: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let mut state = self.cores.lock();
        let rank = self.rank.index();
        match state.waiting[rank].iter().position(|waiter| waiter.id == self.id) {
            Some(at) => {
                drop(state.waiting[rank].remove(at));
                if let Some((client, cost)) = self.work {
                    state.shares.refund(client, cost.as_nanos() as u64);
                }
            }
            None => {
                state.notice(self.rank, self.count);
                state.free += self.count;
            }
        }
        // It may have kept those behind it waiting.
        self.cores.grant(&mut state);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const FULL: Rank = Rank { priority: Priority::Interactive, work: Work::FullBatch };
    const PREPARE: Rank = Rank { priority: Priority::Interactive, work: Work::Prepare };
    const BATCH: Rank = Rank { priority: Priority::Interactive, work: Work::Batch };
    const LATER: Rank = Rank { priority: Priority::Background, work: Work::FullBatch };

    fn cores(total: usize) -> Arc<Cores> {
        Cores::new(total)
    }

    /// Takes a core in the background and says so.
    fn queue(cores: &Arc<Cores>, rank: Rank, name: &'static str, log: &Arc<Mutex<Vec<&'static str>>>) {
        let (cores, log) = (Arc::clone(cores), Arc::clone(log));
        tokio::spawn(async move {
            let held = cores.take(rank, 1).await;
            log.lock().unwrap().push(name);
            tokio::task::yield_now().await;
            drop(held);
        });
    }

    async fn settle() {
        for _ in 0..200 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn no_more_are_held_than_there_are() {
        let cores = cores(2);
        let first = cores.take(PREPARE, 1).now_or_never().unwrap();
        let second = cores.take(BATCH, 1).now_or_never().unwrap();
        assert!(cores.take(FULL, 1).now_or_never().is_none());
        assert_eq!((first.spare(), second.spare(), cores.busy()), (1, 0, 2));
        drop(first);
        assert!(cores.take(PREPARE, 1).now_or_never().is_some());
        drop(second);
        assert_eq!(cores.busy(), 0);
    }

    #[tokio::test]
    async fn a_free_core_goes_to_the_best_rank_and_within_it_to_the_first() {
        let cores = cores(1);
        let log = Arc::default();
        let held = cores.take(PREPARE, 1).await;
        for (rank, name) in
            [(LATER, "later"), (BATCH, "batch"), (PREPARE, "one"), (PREPARE, "two"), (FULL, "full"), (BATCH, "batch 2")]
        {
            queue(&cores, rank, name, &log);
            settle().await;
        }
        drop(held);
        settle().await;
        assert_eq!(*log.lock().unwrap(), ["full", "one", "two", "batch", "batch 2", "later"]);
    }

    #[tokio::test]
    async fn clients_share_the_cores_whoever_came_first() {
        let cores = cores(1);
        let log: Arc<Mutex<Vec<&str>>> = Arc::default();
        let held = cores.take(PREPARE, 1).await;
        let client = |last: u8| Client::of(std::net::IpAddr::from([10, 0, 0, last]));
        for (who, name, cost) in
            [(1, "a1", 10), (1, "a2", 10), (1, "a3", 10), (2, "b1", 5), (2, "b2", 5), (2, "b3", 5), (3, "c1", 1)]
        {
            let (cores, log) = (Arc::clone(&cores), Arc::clone(&log));
            tokio::spawn(async move {
                let _held = cores.take_for(PREPARE, client(who), Duration::from_millis(cost)).await;
                log.lock().unwrap().push(name);
            });
            settle().await;
        }
        drop(held);
        settle().await;
        assert_eq!(*log.lock().unwrap(), ["a1", "b1", "c1", "b2", "a2", "b3", "a3"]);
    }

    #[tokio::test]
    async fn a_rank_that_is_passed_over_again_and_again_has_its_turn() {
        let cores = cores(1);
        let log = Arc::default();
        let held = cores.take(PREPARE, 1).await;
        queue(&cores, LATER, "later", &log);
        settle().await;
        for _ in 0..2 * PATIENCE {
            queue(&cores, PREPARE, "prepare", &log);
        }
        settle().await;
        drop(held);
        settle().await;
        let log = log.lock().unwrap();
        assert_eq!(log.iter().position(|name| *name == "later"), Some(PATIENCE as usize));
        assert_eq!(log.len(), 2 * PATIENCE as usize + 1);
    }

    #[tokio::test]
    async fn who_stops_waiting_leaves_nothing_behind() {
        let cores = cores(1);
        let held = cores.take(PREPARE, 1).await;
        let mut waiting = Box::pin(cores.take(FULL, 1));
        assert!((&mut waiting).now_or_never().is_none());
        drop(waiting);
        // Granted, but dropped before it noticed.
        let mut granted = Box::pin(cores.take(FULL, 1));
        assert!((&mut granted).now_or_never().is_none());
        drop(held);
        assert_eq!(cores.busy(), 1);
        drop(granted);
        assert_eq!(cores.busy(), 0);
        assert!(cores.take(BATCH, 1).now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_wants_several_is_not_overtaken_by_who_wants_one() {
        let cores = cores(2);
        let log = Arc::default();
        let held = cores.take(PREPARE, 1).await;
        let mut wide = Box::pin(cores.take(FULL, 2));
        assert!((&mut wide).now_or_never().is_none());
        queue(&cores, PREPARE, "narrow", &log);
        settle().await;
        assert!(log.lock().unwrap().is_empty());
        drop(held);
        drop(wide.now_or_never().unwrap());
        settle().await;
        assert_eq!(*log.lock().unwrap(), ["narrow"]);
        // More than there are means all.
        assert!(cores.take(FULL, 99).now_or_never().is_some());
    }
}
