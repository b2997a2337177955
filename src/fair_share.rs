//! Resources that clients share, so that one client address cannot take what the others need: amounts, and turns.
//!
//! A [`FairPool`] has a number of units (bytes, requests, connections). A client that already holds some may take more as long as
//! it then holds no more than it leaves free, in the proportion that the operator chose. One client alone can use its share of
//! the pool (half of it by default); several divide it; and a client that holds nothing is served as long as anything fits.
//! No table of limits per client is needed: only clients that hold something take memory. A [`FairOrder`] says whose work is next.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who a resource is accounted to: an IPv4 address, or an IPv6 network of 64 bits, because one host owns at least that much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client(IpAddr);

impl Client {
    /// Work that came over no connection.
    pub const LOCAL: Self = Self(IpAddr::V4(Ipv4Addr::LOCALHOST));

    /// The client at the other end of a connection.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        })
    }
}

/// Units of a resource, shared by clients.
#[derive(Debug)]
pub struct FairPool {
    total: usize,
    /// Fraction of the pool that one client can use while nobody else does; above 0, at most 1.
    share: f64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    /// Only clients that hold something.
    by_client: HashMap<Client, usize>,
}

/// Why a pool gives no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There are not enough free units.
    Full,
    /// The client holds its share. Other clients are still served.
    ClientShare,
}

/// Units held by one client. They return to the pool when this is dropped.
#[derive(Debug)]
pub struct Share {
    pool: Arc<FairPool>,
    client: Client,
    held: usize,
}

impl FairPool {
    /// A pool of `total` units, of which one client uses at most the fraction `share` while it is alone.
    #[must_use]
    pub fn new(total: usize, share: f64) -> Arc<Self> {
        Arc::new(Self { total, share, state: Mutex::default() })
    }

    /// An empty share for a client.
    #[must_use]
    pub fn share(self: &Arc<Self>, client: Client) -> Share {
        Share { pool: Arc::clone(self), client, held: 0 }
    }

    /// Takes `units` for a client.
    ///
    /// # Errors
    /// The pool or the client's share is used up.
    pub fn take(self: &Arc<Self>, client: Client, units: usize) -> Result<Share, Refused> {
        let mut share = self.share(client);
        share.grow(units)?;
        Ok(share)
    }

    /// Units that are held.
    #[must_use]
    pub fn used(&self) -> usize {
        self.lock().used
    }

    /// Whether [`FairPool::take`] would succeed at this moment.
    ///
    /// # Errors
    /// As [`FairPool::take`].
    pub fn check(&self, client: Client, units: usize) -> Result<(), Refused> {
        self.check_in(&self.lock(), client, units)
    }

    fn check_in(&self, state: &State, client: Client, units: usize) -> Result<(), Refused> {
        let Some(free) = (self.total - state.used).checked_sub(units) else { return Err(Refused::Full) };
        let held = state.by_client.get(&client).copied().unwrap_or(0);
        // The share is a fraction of what the client holds and leaves free together. With one client it is one of the pool.
        let within = (held + units) as f64 * (1.0 - self.share) <= free as f64 * self.share;
        if held == 0 || within { Ok(()) } else { Err(Refused::ClientShare) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that runs under the lock can leave the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Units that are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes more units.
    ///
    /// # Errors
    /// The pool or the client's share is used up; what is held stays held.
    pub fn grow(&mut self, units: usize) -> Result<(), Refused> {
        if units == 0 {
            return Ok(());
        }
        let mut state = self.pool.lock();
        self.pool.check_in(&state, self.client, units)?;
        state.used += units;
        *state.by_client.entry(self.client).or_default() += units;
        self.held += units;
        Ok(())
    }

    /// Gives some units back, at most those that are held. Returns how many.
    pub fn shrink(&mut self, units: usize) -> usize {
        let units = units.min(self.held);
        let mut state = self.pool.lock();
        state.used -= units;
        if let Some(held) = state.by_client.get_mut(&self.client) {
            *held -= units;
            if *held == 0 {
                state.by_client.remove(&self.client);
            }
        }
        self.held -= units;
        units
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink(self.held);
    }
}

/// The order of clients' work by start-time fair queueing: work of a client begins, on a clock that only counts, where the work that
/// the client has asked for before ends; a client that had none begins now.
#[derive(Debug, Default)]
pub struct FairOrder {
    /// The tag of the work that was begun last.
    now: u64,
    /// Where each client's work ends; only those that are ahead of the clock.
    ends: HashMap<Client, u64>,
    /// Clients at which the list is gone through next.
    most: usize,
}

/// Clients that are remembered before the list is gone through for those that the clock has passed.
const REMEMBERED: usize = 1024;

impl FairOrder {
    /// The start tag of new work of a client that takes some cost, in any unit; of work of nobody in particular, now.
    pub fn tag(&mut self, work: Option<(Client, u64)>) -> u64 {
        let Some((client, cost)) = work else { return self.now };
        if self.ends.len() >= self.most.max(REMEMBERED) {
            let now = self.now;
            self.ends.retain(|_, end| *end > now);
            // So that going through the list costs nothing per piece of work, however many clients there are.
            self.most = 2 * self.ends.len();
        }
        let end = self.ends.entry(client).or_default();
        let tag = self.now.max(*end);
        *end = tag.saturating_add(cost.max(1));
        tag
    }

    /// Work of a client took more than it was said to.
    pub fn charge(&mut self, client: Client, more: u64) {
        let end = self.ends.entry(client).or_default();
        *end = self.now.max(*end).saturating_add(more);
    }

    /// Work of a client is not going to be done.
    pub fn refund(&mut self, client: Client, cost: u64) {
        if let Some(end) = self.ends.get_mut(&client) {
            *end = end.saturating_sub(cost);
        }
    }

    /// Work with this tag begins.
    pub fn serve(&mut self, tag: u64) {
        self.now = self.now.max(tag);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn client(last: u8) -> Client {
        Client::of(IpAddr::from([10, 0, 0, last]))
    }

    #[test]
    fn one_client_gets_its_share_and_leaves_the_rest_to_others() {
        let pool = FairPool::new(100, 0.5);
        let mut greedy = pool.share(client(1));
        while greedy.grow(1).is_ok() {}
        assert_eq!((greedy.held(), greedy.grow(1)), (50, Err(Refused::ClientShare)));
        let mut second = pool.share(client(2));
        while second.grow(1).is_ok() {}
        assert_eq!(second.held(), 25);
        // A newcomer is served, whatever the others hold.
        let newcomer = pool.take(client(3), 25).unwrap();
        assert_eq!(pool.take(client(4), 1).err(), Some(Refused::Full));
        drop((greedy, second, newcomer));
        assert_eq!((pool.used(), pool.lock().by_client.len()), (0, 0));
    }

    #[test]
    fn a_share_of_one_is_no_limit() {
        let pool = FairPool::new(10, 1.0);
        let mut only = pool.share(client(1));
        (0..10).for_each(|_| only.grow(1).unwrap());
        assert_eq!(only.grow(1), Err(Refused::Full));
        assert_eq!((only.shrink(3), only.shrink(99), pool.used()), (3, 7, 0));
    }

    #[test]
    fn shares_of_one_client_count_together() {
        let pool = FairPool::new(8, 0.5);
        let held: Vec<_> = (0..4).map(|_| pool.take(client(1), 1).unwrap()).collect();
        assert_eq!(pool.check(client(1), 1), Err(Refused::ClientShare));
        assert_eq!(pool.check(client(2), 4), Ok(()));
        drop(held);
        assert_eq!(pool.check(client(1), 8), Ok(()), "whoever holds nothing may have all that is there");
    }

    #[test]
    fn turns_are_paid_for_by_what_was_really_done() {
        let mut order = FairOrder::default();
        let tag = |order: &mut FairOrder, who, cost| order.tag(Some((client(who), cost)));
        assert_eq!((tag(&mut order, 1, 10), tag(&mut order, 1, 10), tag(&mut order, 2, 5)), (0, 10, 0));
        order.charge(client(2), 30);
        order.refund(client(1), 10);
        assert_eq!((tag(&mut order, 1, 1), tag(&mut order, 2, 1)), (10, 35));
        // Whoever has had nothing for a while begins now, not with what he has saved.
        order.serve(100);
        assert_eq!(tag(&mut order, 3, 1), 100);
    }

    #[test]
    fn clients_are_told_apart_by_address_or_ipv6_network() {
        let of = |text: &str| Client::of(text.parse().unwrap());
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
    }
}
