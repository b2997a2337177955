//! Several loads, several targets, several rounds: one report.

use std::sync::Arc;

use super::report::{Series, Subject};
use super::run::{Load, Progress, Settings, Watch, measure};
use super::search::Search;
use super::{Endpoint, LoadError, Measurement, Report};

/// What is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Each is offered to each target in each round.
    pub loads: Vec<Load>,
    /// How often everything is repeated; targets take turns.
    pub rounds: usize,
    /// Whether to look for the highest rate that meets the objective as well.
    pub search: bool,
    /// The percentile that must be within the objective for a rate to meet it.
    pub slo_percentile: f64,
    /// How each load is offered.
    pub settings: Settings,
    /// What is sent, for the report.
    pub images: String,
}

/// The share of requests that may fail for a rate to meet the objective.
const FAILURES: f64 = 0.001;

/// What happens during a campaign.
pub enum Event<'a> {
    /// A run begins.
    Begins {
        /// The target's name.
        target: &'a str,
        /// What is offered.
        load: Load,
        /// Counted from 1; searches have none.
        round: Option<usize>,
    },
    /// A run goes on.
    Goes(Progress),
    /// A run has ended.
    Ended(&'a Measurement),
}

/// Carries a plan out. Ends early, with what there is by then, when `stop` is cancelled.
///
/// # Errors
/// A run could not begin.
pub async fn campaign(
    endpoints: &[Arc<Endpoint>],
    plan: &Plan,
    stop: &tokio_util::sync::CancellationToken,
    tell: &dyn Fn(Event<'_>),
) -> Result<Report, LoadError> {
    let watch = Watch { progress: &|progress| tell(Event::Goes(progress)), stop: stop.clone() };
    let run = async |endpoint: &Arc<Endpoint>, load: Load, round: Option<usize>, settings: &Settings| {
        tell(Event::Begins { target: &endpoint.target.name, load, round });
        let measurement = measure(endpoint, load, settings, &watch).await?;
        tell(Event::Ended(&measurement));
        Ok::<_, LoadError>(measurement)
    };
    let series = || plan.loads.iter().map(|load| Series { load: *load, rounds: Vec::new() }).collect();
    let mut subjects: Vec<Subject> = endpoints
        .iter()
        .map(|endpoint| Subject {
            target: endpoint.target.clone(),
            series: series(),
            searched: Vec::new(),
            highest: None,
        })
        .collect();
    for round in 0..plan.rounds {
        let settings = Settings { seed: plan.settings.seed.wrapping_add(round as u64), ..plan.settings.clone() };
        for index in 0..plan.loads.len() {
            for turn in 0..endpoints.len() {
                // Whoever goes first in one round goes last in another.
                let who = (turn + round) % endpoints.len();
                if stop.is_cancelled() {
                    break;
                }
                let measurement = run(&endpoints[who], plan.loads[index], Some(round + 1), &settings).await?;
                subjects[who].series[index].rounds.push(measurement);
            }
        }
    }
    if plan.search {
        for (endpoint, subject) in endpoints.iter().zip(&mut subjects) {
            let peak = subject.series.iter().flat_map(|series| &series.rounds).map(Measurement::throughput);
            let mut search = Search::from(peak.fold(10.0, f64::max));
            while let Some(rate) = search.next()
                && !stop.is_cancelled()
            {
                let measurement = run(endpoint, Load::Open { rate }, None, &plan.settings).await?;
                if measurement.interrupted {
                    break;
                }
                search.tell(rate, meets(&measurement, plan));
                subject.searched.push(measurement);
            }
            subject.highest = search.found();
        }
    }
    Ok(Report {
        images: plan.images.clone(),
        settings: plan.settings.clone(),
        subjects,
        slo_percentile: plan.slo_percentile,
    })
}

fn meets(measurement: &Measurement, plan: &Plan) -> bool {
    measurement.failure_share() <= FAILURES && measurement.success.percentile(plan.slo_percentile) <= plan.settings.slo
}
