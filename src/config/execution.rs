//! How cores are used.

use std::num::NonZero;
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;

use super::values;
use crate::plan::PlanOptions;
use crate::runtime::Backend;

/// How cores are used.
#[derive(Clone, Debug, Args)]
pub struct Execution {
    /// Number of cores that decode and compute [default: those that the process may use, by affinity mask and
    /// cgroup quota].
    #[arg(long, env = "GHOSTSERVE_CORES", value_name = "N")]
    pub cores: Option<usize>,

    /// Number of sessions that run at the same time [default: measured at the start].
    #[arg(long, env = "GHOSTSERVE_WORKERS", value_name = "N")]
    pub workers: Option<usize>,

    /// Number of threads of each session [default: measured at the start].
    #[arg(long, env = "GHOSTSERVE_THREADS_PER_WORKER", value_name = "N")]
    pub threads_per_worker: Option<usize>,

    /// Maximum number of images in one run of the model [default: measured at the start].
    #[arg(long, env = "GHOSTSERVE_MAX_BATCH", value_name = "N")]
    pub max_batch: Option<usize>,

    /// How long the oldest image waits for a batch to fill. With 0ms no image waits while a core is free. Set it
    /// only if throughput is worth more than latency.
    #[arg(
        long,
        env = "GHOSTSERVE_BATCH_DELAY",
        default_value = "0ms",
        value_parser = values::duration,
        value_name = "TIME"
    )]
    pub batch_delay: Duration,

    /// Measure nothing at the start. Values that are not set are then one worker per core, one thread and four
    /// images.
    #[arg(long, env = "GHOSTSERVE_NO_CALIBRATION", value_parser = BoolishValueParser::new())]
    pub no_calibration: bool,

    // The command line fills in the default folder. `None` in a finished configuration means that no plan is stored.
    /// Folder that stores measured plans for the next start [default: ghostserve in the user's cache folder].
    #[arg(long, env = "GHOSTSERVE_PLAN_CACHE", value_name = "FOLDER")]
    pub plan_cache: Option<PathBuf>,

    /// What computes, and how precisely. Other subcommands have these flags, too: [`crate::cli`] declares them.
    #[arg(skip)]
    pub backend: Backend,
}

impl Execution {
    /// Number of cores that decode and compute: the setting, or as many as the process may use. Those are counted
    /// by the affinity mask and the cgroup's quota, which may be fewer than the host's cores.
    #[must_use]
    pub fn core_count(&self) -> usize {
        self.cores.unwrap_or_else(|| available_parallelism().map_or(1, NonZero::get))
    }

    /// The settings from which the execution plan is chosen.
    #[must_use]
    pub fn plan_options(&self) -> PlanOptions {
        PlanOptions {
            cores: self.core_count(),
            workers: self.workers,
            threads_per_worker: self.threads_per_worker,
            max_batch: self.max_batch,
            calibrate: !self.no_calibration,
            cache: self.plan_cache.clone(),
        }
    }
}
