//! Looking for the highest rate that meets an objective: doubling until it is missed, then halving what is left.

/// How close the answer is taken to be good enough, as a share of the rate.
const CLOSE: f64 = 0.03;
/// Trials at most.
const MOST: usize = 24;

/// A search. Ask [`Search::next`] for a rate, tell [`Search::tell`] how it went, until there is none.
#[derive(Clone, Debug)]
pub(super) struct Search {
    first: f64,
    /// The highest rate that was met; 0 if none was yet.
    met: f64,
    /// The lowest that was missed.
    missed: Option<f64>,
    trials: usize,
}

impl Search {
    /// Begins with a rate.
    pub(super) fn from(first: f64) -> Self {
        Self { first: first.max(0.1), met: 0.0, missed: None, trials: 0 }
    }

    /// The next rate to try.
    pub(super) fn next(&self) -> Option<f64> {
        if self.trials >= MOST {
            return None;
        }
        match self.missed {
            None if self.met > 0.0 => Some(self.met * 2.0),
            None => Some(self.first),
            // Nothing was met so far: downwards in larger steps.
            Some(missed) if self.met <= 0.0 => (missed > 0.2).then_some(missed / 2.0),
            Some(missed) if missed - self.met <= CLOSE * missed => None,
            Some(missed) => Some(f64::midpoint(self.met, missed)),
        }
    }

    /// How a rate went.
    pub(super) fn tell(&mut self, rate: f64, met: bool) {
        self.trials += 1;
        if met {
            self.met = self.met.max(rate);
        } else {
            self.missed = Some(self.missed.map_or(rate, |missed| missed.min(rate)));
        }
    }

    /// The highest rate that was met.
    pub(super) fn found(&self) -> Option<f64> {
        (self.met > 0.0).then_some(self.met)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn run(first: f64, capacity: f64) -> (Option<f64>, usize) {
        let mut search = Search::from(first);
        while let Some(rate) = search.next() {
            search.tell(rate, rate <= capacity);
        }
        (search.found(), search.trials)
    }

    #[test]
    fn the_highest_rate_is_found_from_above_and_below() {
        for first in [1.0, 100.0, 260.0, 5000.0] {
            let (found, trials) = run(first, 261.8);
            let found = found.unwrap();
            assert!(found <= 261.8 && found > 261.8 * 0.96, "{first}: {found}");
            assert!(trials <= 20, "{first}: {trials} trials");
        }
    }

    #[test]
    fn a_server_that_meets_nothing_ends_the_search() {
        let (found, trials) = run(100.0, 0.0);
        assert!(found.is_none() && trials <= MOST);
    }
}
