//! Limits the rate at which the bodies of one client are read while other clients send requests.
//!
//! Copying bytes takes processor time. A client on a fast network could keep the threads that serve connections busy
//! with its bodies. So each client has a maximum rate while more than one client sends bytes. A single client has none.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::{Duration, Instant};

use crate::fair_share::Client;

/// Maximum rate of one client for each core, bytes a second. Decoding is slower than that.
const RATE_PER_CORE: u64 = 192 << 20;

/// Size of a burst that is not limited, as the time in seconds that it takes at the maximum rate.
const BURST: f64 = 0.05;

/// Time for which a client counts as present after it sent bytes.
const PRESENCE: Duration = Duration::from_secs(1);

/// Minimum number of buckets at which those of absent clients are removed.
const MIN_CLEANUP_SIZE: usize = 1024;

/// Token buckets of all clients.
#[derive(Clone, Debug)]
pub(crate) struct Ingress {
    /// Maximum rate of one client, bytes a second.
    rate: f64,
    state: Arc<Mutex<IngressState>>,
}

#[derive(Debug, Default)]
struct IngressState {
    /// For each client: bytes that it may still send without waiting, and when they were computed. Negative if the
    /// client is ahead of its rate.
    buckets: HashMap<Client, (f64, Instant)>,
    /// Number of buckets at which those of absent clients are removed next.
    cleanup_size: usize,
    last_client: Option<Client>,
    /// When the sending client last changed.
    changed_at: Option<Instant>,
}

impl Ingress {
    pub(super) fn new(cores: usize) -> Self {
        Self { rate: (RATE_PER_CORE * cores.max(1) as u64) as f64, state: Arc::default() }
    }

    /// Records bytes received from a client. Returns how long to wait before more of its bytes are read.
    pub(crate) fn received(&self, client: Client, bytes: usize) -> Duration {
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.last_client.replace(client).is_some_and(|last| last != client) {
            state.changed_at = Some(now);
        }
        let alone = state.changed_at.is_none_or(|changed_at| now - changed_at > PRESENCE);
        if state.buckets.len() >= state.cleanup_size.max(MIN_CLEANUP_SIZE) {
            state.buckets.retain(|_, (_, at)| now - *at < PRESENCE);
            state.cleanup_size = 2 * state.buckets.len();
        }
        let full = self.rate * BURST;
        let (tokens, at) = state.buckets.entry(client).or_insert((full, now));
        *tokens = (*tokens + (now - *at).as_secs_f64() * self.rate).min(full) - bytes as f64;
        *at = now;
        if alone {
            // Its bytes delay no other client.
            *tokens = tokens.max(0.0);
        }
        Duration::from_secs_f64((-*tokens).max(0.0) / self.rate).min(PRESENCE)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn clients_are_slowed_down_only_when_there_are_several() {
        let ingress = Ingress::new(1);
        let client = |last: u8| Client::of(IpAddr::from([10, 0, 0, last]));
        let second = RATE_PER_CORE as usize;
        assert_eq!(ingress.received(client(1), 3 * second), Duration::ZERO, "the only client");
        assert_eq!(ingress.received(client(2), 100), Duration::ZERO);
        let wait = ingress.received(client(1), second / 2);
        assert!((0.4..=0.5).contains(&wait.as_secs_f64()), "{wait:?}");
        assert_eq!(ingress.received(client(2), 100), Duration::ZERO, "the other client is not slowed down");
        tokio::time::advance(2 * PRESENCE).await;
        assert_eq!(ingress.received(client(2), 3 * second), Duration::ZERO, "the only client again");
    }
}
