//! The rate at which one client's bodies are read while other clients are there.
//!
//! Moving bytes takes processor time, too. A client on a fast network could keep the threads that serve connections
//! busy with bodies alone, so while more than one client sends requests, each has a rate. One client alone has none.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::{Duration, Instant};

use crate::fair_share::Client;

/// Bytes a second for each core: more than decoding keeps up with.
const RATE_PER_CORE: u64 = 192 << 20;

/// Part of a second's bytes that may come at once.
const BURST: f64 = 0.05;

/// Another client that was there so long ago is still there.
const MEMORY: Duration = Duration::from_secs(1);

/// Clients that are remembered before the list is gone through for those that are not there any more.
const REMEMBERED: usize = 1024;

/// What has been read of each client.
#[derive(Clone, Debug)]
pub(crate) struct Ingress {
    /// Bytes a second.
    rate: f64,
    state: Arc<Mutex<IngressState>>,
}

#[derive(Debug, Default)]
struct IngressState {
    /// Bytes that each client may still send at a time.
    buckets: HashMap<Client, (f64, Instant)>,
    /// Clients at which the list is gone through next.
    most: usize,
    last: Option<Client>,
    /// When bytes of another client than before came.
    changed: Option<Instant>,
}

impl Ingress {
    pub(super) fn new(cores: usize) -> Self {
        Self { rate: (RATE_PER_CORE * cores.max(1) as u64) as f64, state: Arc::default() }
    }

    /// Notes that bytes of a client came; says how long to wait before more of its bytes are read.
    pub(crate) fn received(&self, client: Client, bytes: usize) -> Duration {
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.last.replace(client).is_some_and(|last| last != client) {
            state.changed = Some(now);
        }
        let alone = state.changed.is_none_or(|changed| now - changed > MEMORY);
        if state.buckets.len() >= state.most.max(REMEMBERED) {
            state.buckets.retain(|_, (_, at)| now - *at < MEMORY);
            state.most = 2 * state.buckets.len();
        }
        let full = self.rate * BURST;
        let (tokens, at) = state.buckets.entry(client).or_insert((full, now));
        *tokens = (*tokens + (now - *at).as_secs_f64() * self.rate).min(full) - bytes as f64;
        *at = now;
        if alone {
            // What it has sent so far keeps nobody else waiting.
            *tokens = tokens.max(0.0);
        }
        Duration::from_secs_f64((-*tokens).max(0.0) / self.rate).min(MEMORY)
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
        assert_eq!(ingress.received(client(1), 3 * second), Duration::ZERO, "it is alone");
        assert_eq!(ingress.received(client(2), 100), Duration::ZERO);
        let wait = ingress.received(client(1), second / 2);
        assert!((0.4..=0.5).contains(&wait.as_secs_f64()), "{wait:?}");
        assert_eq!(ingress.received(client(2), 100), Duration::ZERO, "the other one is not meant");
        tokio::time::advance(2 * MEMORY).await;
        assert_eq!(ingress.received(client(2), 3 * second), Duration::ZERO, "alone again");
    }
}
