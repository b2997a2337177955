//! Resources that clients share. One client address cannot take what the other clients need.
//!
//! A [`FairPool`] has a number of units (bytes, requests, connections). A client that already holds units may acquire
//! more as long as it then holds no more than it leaves free, in the proportion that the operator chose. One client
//! alone can use its share of the pool (half of it by default). Several clients divide the pool. A client that holds
//! nothing is served as long as its units fit. No table of limits per client is needed: only clients that hold units
//! take memory. A [`FairOrder`] decides whose work is next.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

/// The client that a resource is accounted to: an IPv4 address, or a 64-bit IPv6 network, because one host owns at
/// least that much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client(IpAddr);

impl Client {
    /// The client of work that came over no connection.
    pub const LOCAL: Self = Self(IpAddr::V4(Ipv4Addr::LOCALHOST));

    /// Returns the client at the other end of a connection.
    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64))),
        })
    }
}

/// Units of a resource that clients share.
#[derive(Debug)]
pub struct FairPool {
    total: usize,
    /// Fraction of the pool that one client can use while no other client does; above 0, at most 1.
    max_share: f64,
    state: Mutex<PoolState>,
}

#[derive(Debug, Default)]
struct PoolState {
    used: usize,
    /// Units of each client that holds any.
    by_client: HashMap<Client, usize>,
}

/// The reason why a pool rejects a request for units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolRejection {
    /// There are not enough free units.
    Full,
    /// The client holds its whole share. Other clients are still served.
    ClientShare,
}

/// Units held by one client. They return to the pool when this is dropped.
#[derive(Debug)]
pub struct Share {
    pool: Arc<FairPool>,
    client: Client,
    units: usize,
}

impl FairPool {
    /// Creates a pool of `total` units. One client uses at most the fraction `max_share` while it is alone.
    #[must_use]
    pub fn new(total: usize, max_share: f64) -> Arc<Self> {
        Arc::new(Self { total, max_share, state: Mutex::default() })
    }

    /// Creates an empty share for a client.
    #[must_use]
    pub fn share(self: &Arc<Self>, client: Client) -> Share {
        Share { pool: Arc::clone(self), client, units: 0 }
    }

    /// Acquires `units` for a client.
    ///
    /// # Errors
    /// The pool or the client's share is used up.
    pub fn acquire(self: &Arc<Self>, client: Client, units: usize) -> Result<Share, PoolRejection> {
        let mut share = self.share(client);
        share.grow(units)?;
        Ok(share)
    }

    /// Number of units in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.lock().used
    }

    /// Checks whether [`FairPool::acquire`] would succeed at this moment.
    ///
    /// # Errors
    /// As [`FairPool::acquire`].
    pub fn check(&self, client: Client, units: usize) -> Result<(), PoolRejection> {
        self.check_in(&self.lock(), client, units)
    }

    fn check_in(&self, state: &PoolState, client: Client, units: usize) -> Result<(), PoolRejection> {
        let Some(free) = (self.total - state.used).checked_sub(units) else { return Err(PoolRejection::Full) };
        let owned = state.by_client.get(&client).copied().unwrap_or(0);
        // The share is a fraction of the units that the client holds plus those that it leaves free. For one client
        // alone that is the whole pool.
        let is_within_share = (owned + units) as f64 * (1.0 - self.max_share) <= free as f64 * self.max_share;
        if owned == 0 || is_within_share { Ok(()) } else { Err(PoolRejection::ClientShare) }
    }

    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock()
    }
}

impl Share {
    /// Number of units in this share.
    #[must_use]
    pub fn units(&self) -> usize {
        self.units
    }

    /// Acquires more units.
    ///
    /// # Errors
    /// The pool or the client's share is used up. The share then stays as it is.
    pub fn grow(&mut self, units: usize) -> Result<(), PoolRejection> {
        if units == 0 {
            return Ok(());
        }
        let mut state = self.pool.lock();
        self.pool.check_in(&state, self.client, units)?;
        state.used += units;
        *state.by_client.entry(self.client).or_default() += units;
        self.units += units;
        Ok(())
    }

    /// Releases up to `units` units. Returns how many were released.
    pub fn shrink(&mut self, units: usize) -> usize {
        let units = units.min(self.units);
        let mut state = self.pool.lock();
        state.used -= units;
        if let Some(owned) = state.by_client.get_mut(&self.client) {
            *owned -= units;
            if *owned == 0 {
                state.by_client.remove(&self.client);
            }
        }
        self.units -= units;
        units
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink(self.units);
    }
}

/// The order of clients' work by start-time fair queueing. On a virtual clock, new work of a client starts where the
/// client's previous work ends. A client without previous work starts now.
#[derive(Debug, Default)]
pub struct FairOrder {
    /// The start tag of the work that was started last.
    virtual_time: u64,
    /// The end of each client's work. Only entries later than the virtual time matter.
    ends: HashMap<Client, u64>,
    /// Number of entries at which outdated ones are removed next.
    sweep_at: usize,
}

/// Smallest number of entries at which [`FairOrder`] removes outdated ones.
const MIN_SWEEP_ENTRIES: usize = 1024;

impl FairOrder {
    /// Returns the start tag of new work of a client with its cost, in any unit. Work without a client starts now.
    pub fn tag(&mut self, work: Option<(Client, u64)>) -> u64 {
        let Some((client, cost)) = work else { return self.virtual_time };
        if self.ends.len() >= self.sweep_at.max(MIN_SWEEP_ENTRIES) {
            let now = self.virtual_time;
            self.ends.retain(|_, end| *end > now);
            // So the sweep costs constant time per piece of work, however many clients there are.
            self.sweep_at = 2 * self.ends.len();
        }
        let end = self.ends.entry(client).or_default();
        let tag = self.virtual_time.max(*end);
        *end = tag.saturating_add(cost.max(1));
        tag
    }

    /// Charges a client for work that cost `extra` more than expected.
    pub fn charge(&mut self, client: Client, extra: u64) {
        let end = self.ends.entry(client).or_default();
        *end = self.virtual_time.max(*end).saturating_add(extra);
    }

    /// Refunds a client the cost of work that will not be done.
    pub fn refund(&mut self, client: Client, cost: u64) {
        if let Some(end) = self.ends.get_mut(&client) {
            *end = end.saturating_sub(cost);
        }
    }

    /// Starts work with this tag: the virtual time advances to it.
    pub fn serve(&mut self, tag: u64) {
        self.virtual_time = self.virtual_time.max(tag);
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
        assert_eq!((greedy.units(), greedy.grow(1)), (50, Err(PoolRejection::ClientShare)));
        let mut second = pool.share(client(2));
        while second.grow(1).is_ok() {}
        assert_eq!(second.units(), 25);
        // A new client is served, however much the others hold.
        let newcomer = pool.acquire(client(3), 25).unwrap();
        assert_eq!(pool.acquire(client(4), 1).err(), Some(PoolRejection::Full));
        drop((greedy, second, newcomer));
        assert_eq!((pool.used(), pool.lock().by_client.len()), (0, 0));
    }

    #[test]
    fn a_share_of_one_is_no_limit() {
        let pool = FairPool::new(10, 1.0);
        let mut only = pool.share(client(1));
        (0..10).for_each(|_| only.grow(1).unwrap());
        assert_eq!(only.grow(1), Err(PoolRejection::Full));
        assert_eq!((only.shrink(3), only.shrink(99), pool.used()), (3, 7, 0));
    }

    #[test]
    fn shares_of_one_client_count_together() {
        let pool = FairPool::new(8, 0.5);
        let shares: Vec<_> = (0..4).map(|_| pool.acquire(client(1), 1).unwrap()).collect();
        assert_eq!(pool.check(client(1), 1), Err(PoolRejection::ClientShare));
        assert_eq!(pool.check(client(2), 4), Ok(()));
        drop(shares);
        assert_eq!(pool.check(client(1), 8), Ok(()), "a client that holds nothing may acquire all units");
    }

    #[test]
    fn clients_are_charged_for_the_actual_cost() {
        let mut order = FairOrder::default();
        let tag = |order: &mut FairOrder, last, cost| order.tag(Some((client(last), cost)));
        assert_eq!((tag(&mut order, 1, 10), tag(&mut order, 1, 10), tag(&mut order, 2, 5)), (0, 10, 0));
        order.charge(client(2), 30);
        order.refund(client(1), 10);
        assert_eq!((tag(&mut order, 1, 1), tag(&mut order, 2, 1)), (10, 35));
        // A client that was idle for a while starts now and has no savings.
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
