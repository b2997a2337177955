//! Lines for images that are expensive to decode, in which clients take turns.
//!
//! An image that takes a tenth of a second must not hold up a hundred small ones. Such images do not take part in the order of work
//! on the cores ([`crate::cores`]). They are decoded on threads of their own, which the system prefers less than all others, a few at
//! once; whoever sends many waits behind his own.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::fair_share::{Client, FairPool, Refused, Share};

/// Where expensive images wait.
#[derive(Debug)]
pub(super) struct Line {
    /// Images that are decoded at once.
    width: usize,
    /// Of one client: the rest stays free for others.
    width_of_client: usize,
    places: Arc<FairPool>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    /// Clients with images in the line.
    clients: HashMap<Client, OfClient>,
    /// Clients with images that wait, in the order of their turns.
    turns: VecDeque<Client>,
}

/// What one client has in the line.
#[derive(Debug, Default)]
struct OfClient {
    tickets: usize,
    /// Expected time of all its images, waiting and running.
    work: Duration,
    running: usize,
    waiting: VecDeque<oneshot::Sender<Slot>>,
}

/// Why an expensive image is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineRefused {
    /// As many images wait as may.
    Full,
    /// The client has as many in the line as it may.
    ClientShare,
    /// Its turn would come too late: the time until it would be done.
    TooLate(Duration),
}

/// A place in the line. Given up when dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    line: Arc<Line>,
    client: Client,
    cost: Duration,
    _place: Share,
}

/// The right to decode. Given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    line: Arc<Line>,
    client: Client,
}

impl Line {
    /// A line of which `width` images are decoded at once, of one client `width_of_client`.
    pub(super) fn new(width: usize, width_of_client: usize, places: &Arc<FairPool>) -> Arc<Self> {
        let (width, width_of_client) = (width.max(1), width_of_client.max(1));
        Arc::new(Self { width, width_of_client, places: Arc::clone(places), state: Mutex::default() })
    }

    /// Takes a place, if the image would be done in time and not wait for longer than it may.
    pub(super) fn enter(
        self: &Arc<Self>,
        client: Client,
        cost: Duration,
        (longest, deadline): (Duration, Instant),
    ) -> Result<Ticket, LineRefused> {
        let place = self.places.take(client, 1).map_err(|refused| match refused {
            Refused::Full => LineRefused::Full,
            Refused::ClientShare => LineRefused::ClientShare,
        })?;
        let mut state = self.lock();
        let known = state.clients.get(&client);
        let clients = state.clients.len() + usize::from(known.is_none());
        // Its share of the threads while all these clients have images in the line.
        let threads = (self.width as f64 / clients as f64).min(self.width_of_client as f64);
        let wait = known.map_or(Duration::ZERO, |line| line.work).div_f64(threads);
        let time = wait + cost.div_f64(threads.min(1.0));
        if wait > longest || Instant::now() + time > deadline {
            return Err(LineRefused::TooLate(time));
        }
        let line = state.clients.entry(client).or_default();
        line.tickets += 1;
        line.work += cost;
        drop(state);
        Ok(Ticket { line: Arc::clone(self), client, cost, _place: place })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that runs under the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives free slots to those whose turn it is.
    fn grant(self: &Arc<Self>) {
        let mut unwanted = Vec::new();
        let mut state = self.lock();
        let mut passed = 0;
        while state.running < self.width && passed < state.turns.len() {
            let Some(client) = state.turns.pop_front() else { break };
            let Some(line) = state.clients.get_mut(&client) else { continue };
            if line.running >= self.width_of_client {
                state.turns.push_back(client);
                passed += 1;
                continue;
            }
            let next = line.waiting.pop_front();
            if !line.waiting.is_empty() {
                state.turns.push_back(client);
            }
            let Some(next) = next else { continue };
            if let Some(line) = state.clients.get_mut(&client) {
                line.running += 1;
            }
            state.running += 1;
            // Whoever has stopped waiting gives it back, which takes the lock.
            if let Err(slot) = next.send(Slot { line: Arc::clone(self), client }) {
                unwanted.push(slot);
            }
            passed = 0;
        }
        drop(state);
        drop(unwanted);
    }
}

impl Ticket {
    /// Waits for its turn.
    pub(super) async fn turn(&self) -> Option<Slot> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.line.lock();
            let line = state.clients.entry(self.client).or_default();
            let first = line.waiting.is_empty();
            line.waiting.push_back(sender);
            if first {
                state.turns.push_back(self.client);
            }
        }
        self.line.grant();
        // The sender stays in the line until it sends.
        receiver.await.ok()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.line.lock();
        if let Some(line) = state.clients.get_mut(&self.client) {
            line.tickets -= 1;
            line.work = line.work.saturating_sub(self.cost);
            line.waiting.retain(|waiting| !waiting.is_closed());
            // A client stands among the turns once, and only while it has images that wait.
            let (idle, gone) = (line.waiting.is_empty(), line.tickets == 0 && line.running == 0);
            if gone {
                state.clients.remove(&self.client);
            }
            if idle || gone {
                state.turns.retain(|client| *client != self.client);
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.line.lock();
        state.running -= 1;
        if let Some(line) = state.clients.get_mut(&self.client) {
            line.running -= 1;
            if line.tickets == 0 && line.running == 0 {
                state.clients.remove(&self.client);
                state.turns.retain(|client| *client != self.client);
            }
        }
        drop(state);
        self.line.grant();
    }
}

/// How much less the system prefers a thread, in steps of about a fifth of its weight. Threads that decode small images and run the model
/// are at five.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Niceness(i32);

impl Niceness {
    /// For medium images: half the weight of small ones. They have somebody waiting for them, too.
    pub(super) const MEDIUM: Self = Self(8);
    /// For large images: a tenth.
    pub(super) const LARGE: Self = Self(15);
}

/// Runs something on a thread of its own.
pub(super) async fn on_a_thread<O: Send + 'static>(
    niceness: Niceness,
    work: impl FnOnce() -> O + Send + 'static,
) -> Option<O> {
    let (sender, receiver) = oneshot::channel();
    let run = move || {
        lower_priority(niceness);
        // Whoever has stopped waiting does not want it.
        let _ = sender.send(work());
    };
    std::thread::Builder::new().name("decode".to_owned()).spawn(run).ok()?;
    receiver.await.ok()
}

fn lower_priority(niceness: Niceness) {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(niceness.0) {
        tracing::debug!(%error, "a thread for expensive images keeps its priority");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = niceness;
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

    fn enter(line: &Arc<Line>, who: u8, patience: u64) -> Result<Ticket, LineRefused> {
        line.enter(client(who), COST, (Duration::MAX, Instant::now() + Duration::from_secs(patience)))
    }

    #[tokio::test(start_paused = true)]
    async fn clients_take_turns() {
        let line = Line::new(1, 1, &FairPool::new(100, 1.0));
        let first = enter(&line, 9, 100).unwrap();
        let running = first.turn().await;
        let log: Arc<Mutex<Vec<Client>>> = Arc::default();
        for who in [1, 1, 1, 1, 2, 3] {
            let (ticket, log) = (enter(&line, who, 100).unwrap(), Arc::clone(&log));
            tokio::spawn(async move {
                let slot = ticket.turn().await;
                log.lock().unwrap().push(ticket.client);
                drop(slot);
            });
            tokio::task::yield_now().await;
        }
        drop(running);
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        assert_eq!(*log.lock().unwrap(), [1, 2, 3, 1, 1, 1].map(client));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_leaves_and_comes_again_has_one_turn() {
        let line = Line::new(1, 1, &FairPool::new(100, 1.0));
        let running = enter(&line, 1, 100).unwrap();
        let _slot = running.turn().await;
        for _ in 0..3 {
            let leaving = enter(&line, 1, 100).unwrap();
            assert!(leaving.turn().now_or_never().is_none());
        }
        let waiting = enter(&line, 1, 100).unwrap();
        assert!(waiting.turn().now_or_never().is_none());
        let turns = line.lock().turns.clone();
        assert!(turns.len() <= 1, "{turns:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_client_does_not_have_all_threads() {
        let line = Line::new(4, 2, &FairPool::new(100, 1.0));
        let tickets: Vec<Ticket> = (0..4).map(|_| enter(&line, 1, 100).unwrap()).collect();
        let slots: Vec<_> = tickets.iter().map(|ticket| ticket.turn().now_or_never().flatten()).collect();
        assert_eq!(slots.iter().flatten().count(), 2);
        assert!(enter(&line, 2, 100).unwrap().turn().now_or_never().flatten().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_comes_too_late_or_brings_too_many_is_told_at_once() {
        let line = Line::new(1, 1, &FairPool::new(8, 0.5));
        let _first = enter(&line, 1, 10).unwrap();
        assert_eq!(enter(&line, 1, 1).unwrap_err(), LineRefused::TooLate(2 * COST));
        assert!(
            line.enter(client(1), COST, (COST / 2, Instant::now() + 100 * COST)).is_err(),
            "it would wait too long"
        );
        // Another client waits for its share of the threads, not for the first one's images.
        let _held: Vec<_> = (0..3).map(|_| enter(&line, 1, 10).unwrap()).collect();
        assert_eq!(enter(&line, 1, 10).unwrap_err(), LineRefused::ClientShare);
        assert!(enter(&line, 2, 2).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_stops_waiting_leaves_nothing_behind() {
        let line = Line::new(1, 1, &FairPool::new(8, 1.0));
        let (running, waiting) = (enter(&line, 1, 10).unwrap(), enter(&line, 2, 10).unwrap());
        let slot = running.turn().now_or_never().flatten().unwrap();
        let mut turn = Box::pin(waiting.turn());
        assert!((&mut turn).now_or_never().is_none());
        // Granted, but dropped before it noticed.
        drop(slot);
        drop(turn);
        drop(waiting);
        assert_eq!(line.lock().running, 0);
        drop(running);
        let state = line.lock();
        assert_eq!((state.clients.len(), state.turns.len(), line.places.used()), (0, 0, 0));
    }
}
