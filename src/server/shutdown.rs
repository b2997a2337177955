//! The phases of the server: running, draining, stopping.
//!
//! After SIGTERM, SIGINT or SIGQUIT, readiness fails at once, so that load balancers stop sending requests. During a
//! grace period all requests are still accepted, because load balancers need time to notice. Then the listeners close,
//! and requests in flight finish. A second signal skips the rest of the grace period.

use tokio::sync::watch;

/// Phase of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Normal operation.
    Running,
    /// The server will stop. It still accepts connections.
    Draining,
    /// The server accepts no more connections.
    Stopping,
}

/// Holds the phase, to be read, advanced and awaited. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Lifecycle(watch::Sender<Phase>);

impl Lifecycle {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Phase::Running))
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Sets the phase to `phase`, unless a later one is reached.
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

/// The signals that the process handles from the creation of this value on.
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

    /// SIGTERM, SIGINT (Ctrl-C) and SIGQUIT, which start the drain.
    pub(crate) struct StopSignals([Signal; 3]);

    impl StopSignals {
        pub(super) fn receive() -> std::io::Result<Self> {
            Ok(Self([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::quit())?]))
        }

        /// Waits for the next signal and returns its name.
        pub(crate) async fn next(&mut self) -> &'static str {
            let [term, int, quit] = &mut self.0;
            tokio::select! {
                _ = term.recv() => "SIGTERM",
                _ = int.recv() => "SIGINT",
                _ = quit.recv() => "SIGQUIT",
            }
        }
    }

    /// Signals that would by default end the process at once, without a drain. A closed terminal sends SIGHUP. Log
    /// rotation and operators may send the others.
    pub(crate) struct OtherSignals([Signal; 4]);

    impl OtherSignals {
        pub(crate) fn receive() -> std::io::Result<Self> {
            Ok(Self([
                signal(SignalKind::hangup())?,
                signal(SignalKind::user_defined1())?,
                signal(SignalKind::user_defined2())?,
                signal(SignalKind::alarm())?,
            ]))
        }

        /// Logs each signal and continues. Runs until it is dropped.
        pub(crate) async fn ignore(mut self) {
            let [hangup, first, second, alarm] = &mut self.0;
            loop {
                let signal = tokio::select! {
                    _ = hangup.recv() => "SIGHUP",
                    _ = first.recv() => "SIGUSR1",
                    _ = second.recv() => "SIGUSR2",
                    _ = alarm.recv() => "SIGALRM",
                };
                tracing::info!(signal, "signal ignored: there is nothing to reload yet; SIGTERM stops the server");
            }
        }
    }
}

#[cfg(not(unix))]
mod received {
    /// Ctrl-C, which starts the drain.
    pub(crate) struct StopSignals;

    impl StopSignals {
        pub(super) fn receive() -> std::io::Result<Self> {
            Ok(Self)
        }

        /// Waits for the next signal and returns its name.
        pub(crate) async fn next(&mut self) -> &'static str {
            let _ = tokio::signal::ctrl_c().await;
            "Ctrl-C"
        }
    }

    /// No other signals exist on this system.
    pub(crate) struct OtherSignals;

    impl OtherSignals {
        pub(crate) fn receive() -> std::io::Result<Self> {
            Ok(Self)
        }

        pub(crate) async fn ignore(self) {
            std::future::pending().await
        }
    }
}

pub(crate) use received::{OtherSignals, StopSignals};
