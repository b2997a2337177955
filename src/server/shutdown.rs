//! The server's life: running, draining, stopping.
//!
//! On SIGTERM or SIGINT readiness fails at once, so that load balancers turn away; for a grace period everything is
//! still accepted, because they need a moment to notice; then the listeners close and what is in flight finishes. A
//! second signal skips the rest of the grace period.

use tokio::sync::watch;

/// Where the server is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// All is well.
    Running,
    /// Told to stop; still accepting.
    Draining,
    /// No longer accepting.
    Stopping,
}

/// A handle on the phase, to read it and to wait for the next.
#[derive(Clone, Debug)]
pub(crate) struct Lifecycle(watch::Sender<Phase>);

impl Lifecycle {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Phase::Running))
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Moves on to `phase`; never back.
    pub(crate) fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|current| {
            let later = phase > *current;
            *current = phase.max(*current);
            later
        });
    }

    /// Waits until at least `phase` is reached.
    pub(crate) async fn reached(&self, phase: Phase) {
        // The sender is in `self`, so the channel cannot close.
        let _ = self.0.subscribe().wait_for(|current| *current >= phase).await;
    }
}

/// Waits for SIGTERM or SIGINT (Ctrl-C).
pub(crate) async fn signal() -> std::io::Result<&'static str> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            _ = term.recv() => Ok("SIGTERM"),
            _ = int.recv() => Ok("SIGINT"),
        }
    }
    #[cfg(not(unix))]
    {
        tokio::signal::ctrl_c().await.map(|()| "Ctrl-C")
    }
}
