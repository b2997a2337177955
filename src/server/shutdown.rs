//! The server's life: running, draining, stopping.
//!
//! On SIGTERM, SIGINT or SIGQUIT readiness fails at once, so that load balancers turn away; for a grace period everything is
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

/// Waits for a signal to stop: SIGTERM, SIGINT (Ctrl-C) or SIGQUIT.
pub(crate) async fn signal() -> std::io::Result<&'static str> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let [mut term, mut int, mut quit] =
            [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::quit())?];
        tokio::select! {
            _ = term.recv() => Ok("SIGTERM"),
            _ = int.recv() => Ok("SIGINT"),
            _ = quit.recv() => Ok("SIGQUIT"),
        }
    }
    #[cfg(not(unix))]
    {
        tokio::signal::ctrl_c().await.map(|()| "Ctrl-C")
    }
}

/// Catches the signals that would end the process at once, without a drain, and logs them instead. A closed terminal sends
/// SIGHUP; log rotation and operators' habits send the others. Runs until it is dropped.
pub(crate) async fn survive_other_signals() -> std::io::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let kinds =
            [SignalKind::hangup(), SignalKind::user_defined1(), SignalKind::user_defined2(), SignalKind::alarm()];
        let [mut hangup, mut first, mut second, mut alarm] =
            [signal(kinds[0])?, signal(kinds[1])?, signal(kinds[2])?, signal(kinds[3])?];
        loop {
            let signal = tokio::select! {
                _ = hangup.recv() => "SIGHUP",
                _ = first.recv() => "SIGUSR1",
                _ = second.recv() => "SIGUSR2",
                _ = alarm.recv() => "SIGALRM",
            };
            tracing::info!(signal, "there is nothing to reload; the server goes on, SIGTERM stops it");
        }
    }
    #[cfg(not(unix))]
    std::future::pending().await
}
