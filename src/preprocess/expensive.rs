//! Queues for images that are expensive to decode. Clients take turns in them.
//!
//! An image that takes a tenth of a second must not delay a hundred small ones. So expensive images do not take part
//! in the order of work on the cores ([`crate::cores`]). They are decoded a few at once, on threads of their own with
//! a lower priority than all others. A client that sends many expensive images waits behind its own images.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::cores::{Niceness, lower_priority};
use crate::fair_share::{Client, FairPool, PoolRejection, Share};

/// A queue of expensive images.
#[derive(Debug)]
pub(super) struct ExpensiveQueue {
    /// Maximum number of images decoded at once.
    max_running: usize,
    /// Maximum number of images decoded at once for one client. The rest stays free for other clients.
    max_running_per_client: usize,
    /// Limits the images in the queue, waiting and running.
    capacity: Arc<FairPool>,
    state: Mutex<ExpensiveState>,
}

#[derive(Debug, Default)]
struct ExpensiveState {
    running: usize,
    /// Clients with images in the queue.
    clients: HashMap<Client, ClientImages>,
    /// Clients with waiting images, in the order of their turns.
    turns: VecDeque<Client>,
}

/// Images of one client in the queue.
#[derive(Debug, Default)]
struct ClientImages {
    /// Number of images, waiting and running.
    entries: usize,
    /// Expected time of all images, waiting and running.
    work: Duration,
    running: usize,
    waiting: VecDeque<oneshot::Sender<DecodeSlot>>,
}

/// The reason why the queue rejects an expensive image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueRejection {
    /// The queue is full.
    Full,
    /// The client's share of the queue is used up.
    ClientShare,
    /// The image would be decoded too late: the time until it would be done.
    TooLate(Duration),
}

/// An image's entry in the queue. The image leaves the queue when this is dropped.
#[derive(Debug)]
pub(super) struct QueueEntry {
    queue: Arc<ExpensiveQueue>,
    client: Client,
    cost: Duration,
    _capacity: Share,
}

/// Permission to decode an image. Released when dropped.
#[derive(Debug)]
pub(super) struct DecodeSlot {
    queue: Arc<ExpensiveQueue>,
    client: Client,
}

impl ExpensiveQueue {
    /// Creates a queue of which at most `max_running` images are decoded at once, and `max_running_per_client` of one
    /// client. `capacity` limits the images in the queue.
    pub(super) fn new(max_running: usize, max_running_per_client: usize, capacity: &Arc<FairPool>) -> Arc<Self> {
        Arc::new(Self {
            max_running: max_running.max(1),
            max_running_per_client: max_running_per_client.max(1),
            capacity: Arc::clone(capacity),
            state: Mutex::default(),
        })
    }

    /// Adds an image, if it would wait for at most `max_wait` and be done before `deadline`.
    pub(super) fn enter(
        self: &Arc<Self>,
        client: Client,
        cost: Duration,
        max_wait: Duration,
        deadline: Instant,
    ) -> Result<QueueEntry, QueueRejection> {
        let capacity = self.capacity.acquire(client, 1).map_err(|rejection| match rejection {
            PoolRejection::Full => QueueRejection::Full,
            PoolRejection::ClientShare => QueueRejection::ClientShare,
        })?;
        let mut state = self.lock();
        let known = state.clients.get(&client);
        let clients = state.clients.len() + usize::from(known.is_none());
        // The client's share of the threads while all these clients have images in the queue.
        let threads = (self.max_running as f64 / clients as f64).min(self.max_running_per_client as f64);
        let wait = known.map_or(Duration::ZERO, |images| images.work).div_f64(threads);
        let time = wait + cost.div_f64(threads.min(1.0));
        if wait > max_wait || Instant::now() + time > deadline {
            return Err(QueueRejection::TooLate(time));
        }
        let images = state.clients.entry(client).or_default();
        images.entries += 1;
        images.work += cost;
        drop(state);
        Ok(QueueEntry { queue: Arc::clone(self), client, cost, _capacity: capacity })
    }

    fn lock(&self) -> MutexGuard<'_, ExpensiveState> {
        self.state.lock()
    }

    /// Grants free slots to the next images, one client after the other.
    fn grant(self: &Arc<Self>) {
        let mut unclaimed = Vec::new();
        let mut state = self.lock();
        let mut passed_over = 0;
        while state.running < self.max_running && passed_over < state.turns.len() {
            let Some(client) = state.turns.pop_front() else { break };
            let Some(images) = state.clients.get_mut(&client) else { continue };
            if images.running >= self.max_running_per_client {
                state.turns.push_back(client);
                passed_over += 1;
                continue;
            }
            let next = images.waiting.pop_front();
            if !images.waiting.is_empty() {
                state.turns.push_back(client);
            }
            let Some(next) = next else { continue };
            if let Some(images) = state.clients.get_mut(&client) {
                images.running += 1;
            }
            state.running += 1;
            // An image whose caller stopped waiting returns its slot. Dropping the slot takes the lock.
            if let Err(slot) = next.send(DecodeSlot { queue: Arc::clone(self), client }) {
                unclaimed.push(slot);
            }
            passed_over = 0;
        }
        drop(state);
        drop(unclaimed);
    }
}

impl QueueEntry {
    /// Waits for a slot.
    pub(super) async fn slot(&self) -> Option<DecodeSlot> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.queue.lock();
            let images = state.clients.entry(self.client).or_default();
            let is_first = images.waiting.is_empty();
            images.waiting.push_back(sender);
            if is_first {
                state.turns.push_back(self.client);
            }
        }
        self.queue.grant();
        // The sender stays in the queue until it sends.
        receiver.await.ok()
    }
}

impl Drop for QueueEntry {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        if let Some(images) = state.clients.get_mut(&self.client) {
            images.entries -= 1;
            images.work = images.work.saturating_sub(self.cost);
            images.waiting.retain(|waiting| !waiting.is_closed());
            // A client is listed once among the turns, and only while it has waiting images.
            let (is_idle, is_gone) = (images.waiting.is_empty(), images.entries == 0 && images.running == 0);
            if is_gone {
                state.clients.remove(&self.client);
            }
            if is_idle || is_gone {
                state.turns.retain(|client| *client != self.client);
            }
        }
    }
}

impl Drop for DecodeSlot {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.running -= 1;
        if let Some(images) = state.clients.get_mut(&self.client) {
            images.running -= 1;
            if images.entries == 0 && images.running == 0 {
                state.clients.remove(&self.client);
                state.turns.retain(|client| *client != self.client);
            }
        }
        drop(state);
        self.queue.grant();
    }
}

/// Runs work on a new thread of this priority. Returns `None` if the thread cannot be started or the work panics.
pub(super) async fn run_on_thread<O: Send + 'static>(
    niceness: Niceness,
    work: impl FnOnce() -> O + Send + 'static,
) -> Option<O> {
    let (sender, receiver) = oneshot::channel();
    let run = move || {
        lower_priority(niceness);
        // The receiver is gone if the caller has stopped waiting.
        let _ = sender.send(work());
    };
    std::thread::Builder::new().name("decode".to_owned()).spawn(run).ok()?;
    receiver.await.ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::IpAddr;

    use futures::FutureExt;

    use super::*;

    const COST: Duration = Duration::from_secs(1);

    fn client(last: u8) -> Client {
        Client::of(IpAddr::from([10, 0, 0, last]))
    }

    /// Enters an image of a client, with a deadline in seconds from now.
    fn enter(queue: &Arc<ExpensiveQueue>, last: u8, seconds: u64) -> Result<QueueEntry, QueueRejection> {
        queue.enter(client(last), COST, Duration::MAX, Instant::now() + Duration::from_secs(seconds))
    }

    #[tokio::test(start_paused = true)]
    async fn clients_take_turns() {
        let queue = ExpensiveQueue::new(1, 1, &FairPool::new(100, 1.0));
        let first = enter(&queue, 9, 100).unwrap();
        let running = first.slot().await;
        let log: Arc<Mutex<Vec<Client>>> = Arc::default();
        for last in [1, 1, 1, 1, 2, 3] {
            let (entry, log) = (enter(&queue, last, 100).unwrap(), Arc::clone(&log));
            tokio::spawn(async move {
                let slot = entry.slot().await;
                log.lock().push(entry.client);
                drop(slot);
            });
            tokio::task::yield_now().await;
        }
        drop(running);
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        assert_eq!(*log.lock(), [1, 2, 3, 1, 1, 1].map(client));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_leaves_and_returns_has_one_turn() {
        let queue = ExpensiveQueue::new(1, 1, &FairPool::new(100, 1.0));
        let running = enter(&queue, 1, 100).unwrap();
        let _slot = running.slot().await;
        for _ in 0..3 {
            let leaving = enter(&queue, 1, 100).unwrap();
            assert!(leaving.slot().now_or_never().is_none());
        }
        let waiting = enter(&queue, 1, 100).unwrap();
        assert!(waiting.slot().now_or_never().is_none());
        let turns = queue.lock().turns.clone();
        assert!(turns.len() <= 1, "{turns:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_client_does_not_get_all_threads() {
        let queue = ExpensiveQueue::new(4, 2, &FairPool::new(100, 1.0));
        let entries: Vec<QueueEntry> = (0..4).map(|_| enter(&queue, 1, 100).unwrap()).collect();
        let slots: Vec<_> = entries.iter().map(|entry| entry.slot().now_or_never().flatten()).collect();
        assert_eq!(slots.iter().flatten().count(), 2);
        assert!(enter(&queue, 2, 100).unwrap().slot().now_or_never().flatten().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn images_that_are_too_late_or_too_many_are_rejected_immediately() {
        let queue = ExpensiveQueue::new(1, 1, &FairPool::new(8, 0.5));
        let _first = enter(&queue, 1, 10).unwrap();
        assert_eq!(enter(&queue, 1, 1).unwrap_err(), QueueRejection::TooLate(2 * COST));
        let rejected = queue.enter(client(1), COST, COST / 2, Instant::now() + 100 * COST);
        assert!(rejected.is_err(), "it would wait too long");
        // Another client waits for its share of the threads, not for the first client's images.
        let _entries: Vec<_> = (0..3).map(|_| enter(&queue, 1, 10).unwrap()).collect();
        assert_eq!(enter(&queue, 1, 10).unwrap_err(), QueueRejection::ClientShare);
        assert!(enter(&queue, 2, 2).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_image_leaves_nothing_behind() {
        let queue = ExpensiveQueue::new(1, 1, &FairPool::new(8, 1.0));
        let (running, waiting) = (enter(&queue, 1, 10).unwrap(), enter(&queue, 2, 10).unwrap());
        let slot = running.slot().now_or_never().flatten().unwrap();
        let mut turn = Box::pin(waiting.slot());
        assert!((&mut turn).now_or_never().is_none());
        // Granted, but dropped before it received the slot.
        drop(slot);
        drop(turn);
        drop(waiting);
        assert_eq!(queue.lock().running, 0);
        drop(running);
        let state = queue.lock();
        assert_eq!((state.clients.len(), state.turns.len(), queue.capacity.used()), (0, 0, 0));
    }
}
