//! Saturation search: finds the highest arrival rate that meets the latency objective. It doubles the rate until the
//! objective is missed, then bisects.

/// Distance at which the search ends, as a share of the lowest rate that missed the objective.
const TOLERANCE: f64 = 0.03;
/// Largest number of trials.
const MAX_TRIALS: usize = 24;

/// State of a search. The caller takes a rate from [`Self::next_rate`], tries it and reports the result to
/// [`Self::record`], until there is no next rate.
#[derive(Clone, Debug)]
pub(super) struct SaturationSearch {
    /// Rate of the first trial, requests per second.
    first: f64,
    /// Highest rate that met the objective; 0 if there is none yet.
    met: f64,
    /// Lowest rate that missed the objective.
    missed: Option<f64>,
    trials: usize,
}

impl SaturationSearch {
    /// Creates a search whose first trial is at `rate`, but at 0.1 requests per second or more.
    pub(super) fn starting_at(rate: f64) -> Self {
        Self { first: rate.max(0.1), met: 0.0, missed: None, trials: 0 }
    }

    /// The next rate to try; `None` when the search has ended.
    pub(super) fn next_rate(&self) -> Option<f64> {
        if self.trials >= MAX_TRIALS {
            return None;
        }
        match self.missed {
            None if self.met > 0.0 => Some(self.met * 2.0),
            None => Some(self.first),
            // No rate has met the objective yet: halve.
            Some(missed) if self.met <= 0.0 => (missed > 0.2).then_some(missed / 2.0),
            Some(missed) if missed - self.met <= TOLERANCE * missed => None,
            Some(missed) => Some(f64::midpoint(self.met, missed)),
        }
    }

    /// Records whether `rate` met the objective.
    pub(super) fn record(&mut self, rate: f64, met: bool) {
        self.trials += 1;
        if met {
            self.met = self.met.max(rate);
        } else {
            self.missed = Some(self.missed.map_or(rate, |missed| missed.min(rate)));
        }
    }

    /// The highest rate that met the objective.
    pub(super) fn highest_rate(&self) -> Option<f64> {
        (self.met > 0.0).then_some(self.met)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn search_result(first: f64, capacity: f64) -> (Option<f64>, usize) {
        let mut search = SaturationSearch::starting_at(first);
        while let Some(rate) = search.next_rate() {
            search.record(rate, rate <= capacity);
        }
        (search.highest_rate(), search.trials)
    }

    #[test]
    fn the_highest_rate_is_found_from_above_and_from_below() {
        for first in [1.0, 100.0, 260.0, 5000.0] {
            let (highest, trials) = search_result(first, 261.8);
            let highest = highest.unwrap();
            assert!(highest <= 261.8 && highest > 261.8 * 0.96, "{first}: {highest}");
            assert!(trials <= 20, "{first}: {trials} trials");
        }
    }

    #[test]
    fn the_search_ends_if_no_rate_meets_the_objective() {
        let (highest, trials) = search_result(100.0, 0.0);
        assert!(highest.is_none() && trials <= MAX_TRIALS);
    }
}
