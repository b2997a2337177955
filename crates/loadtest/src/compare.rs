//! Medians over rounds, and the ratio of one target's statistics to another's.

/// The median of some values (the mean of the middle two if their number is even); NaN if there are none.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

/// Ratio of a target's statistic to the first target's.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct StatisticRatio {
    /// Ratio of the medians over the rounds.
    pub of_medians: f64,
    /// Smallest ratio of any round.
    #[serde(rename = "least")]
    pub min: f64,
    /// Largest ratio of any round.
    #[serde(rename = "most")]
    pub max: f64,
}

impl StatisticRatio {
    /// Computes the ratio of `values` to `base`: one value per round, paired by position. Rounds without a value (NaN)
    /// do not count.
    #[must_use]
    pub fn of(values: &[f64], base: &[f64]) -> Self {
        let finite_median = |values: &[f64]| median(values.iter().copied().filter(|value| value.is_finite()));
        // `f64::min` and `f64::max` skip NaN.
        let rounds = || values.iter().zip(base).map(|(value, base)| value / base);
        Self {
            of_medians: finite_median(values) / finite_median(base),
            min: rounds().fold(f64::INFINITY, f64::min),
            max: rounds().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median([3.0, 1.0, 2.0]) - 2.0).abs() < 1e-12);
        assert!((median([4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-12);
        assert!(median([]).is_nan());
    }

    #[test]
    fn a_ratio_is_of_medians_and_has_the_range_over_the_rounds() {
        let ratio = StatisticRatio::of(&[10.0, 30.0, 20.0], &[10.0, 10.0, 5.0]);
        assert_eq!(ratio, StatisticRatio { of_medians: 2.0, min: 1.0, max: 4.0 });
    }
}
