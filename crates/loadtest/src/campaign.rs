//! A campaign: several workloads against several targets in several rounds, with one report.

use std::sync::Arc;

use super::environment::without_credentials;
use super::report::{TargetReport, WorkloadSeries};
use super::run::{RunObserver, RunProgress, RunSettings, Workload, measure};
use super::search::SaturationSearch;
use super::{CampaignReport, Environment, LoadTarget, LoadTestError, PreparedEndpoint, RunMeasurement};

/// What a campaign measures.
#[derive(Clone, Debug)]
pub struct CampaignPlan {
    /// Workloads; each is offered to each target in each round.
    pub workloads: Vec<Workload>,
    /// Number of repetitions; within one, the targets take turns.
    pub rounds: usize,
    /// Whether to search for the saturation rate: the highest rate that meets the latency objective.
    pub search: bool,
    /// Latency percentile, 0 to 100, that must be within the objective for a rate to meet it.
    pub slo_percentile: f64,
    /// Settings of every run.
    pub settings: RunSettings,
    /// Description of the images, for the report.
    pub images: String,
}

/// Largest share of failed requests with which a rate meets the objective.
const MAX_FAILURE_SHARE: f64 = 0.001;

/// Lowest rate at which a saturation search starts, requests per second.
const MIN_FIRST_RATE: f64 = 10.0;

/// An event during a campaign.
pub enum CampaignEvent<'a> {
    /// A run has started.
    RunStarted {
        /// The target's name.
        target: &'a str,
        /// The offered workload.
        workload: Workload,
        /// Number of the round, from 1; `None` for runs of a saturation search.
        round: Option<usize>,
    },
    /// A run is in progress.
    RunProgressed(RunProgress),
    /// A run has ended.
    RunFinished(&'a RunMeasurement),
}

/// Executes `plan`. If `stop` is cancelled it ends early and reports what was measured until then. Must run on a
/// current-thread tokio runtime, as [`measure`].
///
/// # Errors
/// A run could not start.
pub async fn run_campaign(
    endpoints: &[Arc<PreparedEndpoint>],
    plan: &CampaignPlan,
    stop: &tokio_util::sync::CancellationToken,
    on_event: &dyn Fn(CampaignEvent<'_>),
) -> Result<CampaignReport, LoadTestError> {
    let environment = Environment::now();
    let on_progress = |progress| on_event(CampaignEvent::RunProgressed(progress));
    let observer = RunObserver { on_progress: &on_progress, stop: stop.clone() };
    let run =
        async |endpoint: &Arc<PreparedEndpoint>, workload: Workload, round: Option<usize>, settings: &RunSettings| {
            on_event(CampaignEvent::RunStarted { target: &endpoint.target.name, workload, round });
            let measurement = measure(endpoint, workload, settings, &observer).await?;
            on_event(CampaignEvent::RunFinished(&measurement));
            Ok::<_, LoadTestError>(measurement)
        };
    let mut targets: Vec<TargetReport> = endpoints.iter().map(|endpoint| empty_report(endpoint, plan)).collect();
    for round in 0..plan.rounds {
        let settings = RunSettings { seed: plan.settings.seed.wrapping_add(round as u64), ..plan.settings.clone() };
        for index in 0..plan.workloads.len() {
            for turn in 0..endpoints.len() {
                // The order rotates: the target that goes first changes from round to round.
                let target = (turn + round) % endpoints.len();
                if stop.is_cancelled() {
                    break;
                }
                let workload = plan.workloads[index];
                let measurement = run(&endpoints[target], workload, Some(round + 1), &settings).await?;
                targets[target].series[index].rounds.push(measurement);
            }
        }
    }
    if plan.search {
        for (endpoint, target) in endpoints.iter().zip(&mut targets) {
            let throughputs = target.series.iter().flat_map(|series| &series.rounds).map(RunMeasurement::throughput);
            let mut search = SaturationSearch::starting_at(throughputs.fold(MIN_FIRST_RATE, f64::max));
            while let Some(arrival_rate) = search.next_rate()
                && !stop.is_cancelled()
            {
                let measurement = run(endpoint, Workload::OpenLoop { arrival_rate }, None, &plan.settings).await?;
                if measurement.interrupted {
                    break;
                }
                search.record(arrival_rate, meets_objective(&measurement, plan));
                target.search_runs.push(measurement);
            }
            target.highest_rate = search.highest_rate();
        }
    }
    Ok(CampaignReport {
        environment,
        images: plan.images.clone(),
        settings: plan.settings.clone(),
        targets,
        slo_percentile: plan.slo_percentile,
    })
}

/// A report of `endpoint` with no run yet.
fn empty_report(endpoint: &PreparedEndpoint, plan: &CampaignPlan) -> TargetReport {
    TargetReport {
        target: LoadTarget {
            name: without_credentials(&endpoint.target.name),
            url: without_credentials(&endpoint.target.url),
            ..endpoint.target.clone()
        },
        server: endpoint.server.clone(),
        series: plan.workloads.iter().map(|workload| WorkloadSeries::new(*workload)).collect(),
        search_runs: Vec::new(),
        highest_rate: None,
    }
}

fn meets_objective(measurement: &RunMeasurement, plan: &CampaignPlan) -> bool {
    measurement.failure_share() <= MAX_FAILURE_SHARE
        && measurement.success.percentile(plan.slo_percentile) <= plan.settings.slo
}
