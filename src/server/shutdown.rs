//! The server's life: running, draining, stopping.
//!
//! On SIGTERM, SIGINT or SIGQUIT readiness fails at once, so that load balancers turn away; for a grace period
//! everything is still accepted, because they need a moment to notice; then the listeners close and what is in flight
//! finishes. A second signal skips the rest of the grace period.

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

/// The signals that the process receives, from when this is made.
pub(crate) struct Signals {
    pub(crate) stop: StopSignals,
    pub(crate) other: OtherSignals,
}

impl Signals {
    pub(crate) fn receive() -> std::io::Result<Self> {
        Ok(Self { stop: StopSignals::receive()?, other: OtherSignals::receive()? })
    }
}

#[cfg(unix)]
mod received {
    use tokio::signal::unix::{Signal, SignalKind, signal};

    /// SIGTERM, SIGINT (Ctrl-C) and SIGQUIT: drain and end.
    pub(crate) struct StopSignals([Signal; 3]);

    impl StopSignals {
        pub(super) fn receive() -> std::io::Result<Self> {
            Ok(Self([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::quit())?]))
        }

        /// The next of them.
        pub(crate) async fn next(&mut self) -> &'static str {
            let [term, int, quit] = &mut self.0;
            tokio::select! {
                _ = term.recv() => "SIGTERM",
                _ = int.recv() => "SIGINT",
                _ = quit.recv() => "SIGQUIT",
            }
        }
    }

    /// Signals that by themselves would end the process at once, without a drain. A closed terminal sends SIGHUP; log
    /// rotation and operators' habits send the others.
    pub(crate) struct OtherSignals([Signal; 4]);

    impl OtherSignals {
        pub(super) fn receive() -> std::io::Result<Self> {
            Ok(Self([
                signal(SignalKind::hangup())?,
                signal(SignalKind::user_defined1())?,
                signal(SignalKind::user_defined2())?,
                signal(SignalKind::alarm())?,
            ]))
        }

        /// Logs them. Runs until it is dropped.
        pub(crate) async fn survive(mut self) {
            let [hangup, first, second, alarm] = &mut self.0;
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
    }
}

#[cfg(not(unix))]
mod received {
    /// Ctrl-C: drain and end.
    pub(crate) struct StopSignals;

    impl StopSignals {
        pub(super) fn receive() -> std::io::Result<Self> {
            Ok(Self)
        }

        /// The next of them.
        pub(crate) async fn next(&mut self) -> &'static str {
            let _ = tokio::signal::ctrl_c().await;
            "Ctrl-C"
        }
    }

    /// There are no others.
    pub(crate) struct OtherSignals;

    impl OtherSignals {
        pub(super) fn receive() -> std::io::Result<Self> {
            Ok(Self)
        }

        pub(crate) async fn survive(self) {
            std::future::pending().await
        }
    }
}

pub(crate) use received::{OtherSignals, StopSignals};
