//! Several runs as one number, and one target's numbers against another's.

/// The middle of some values, or the mean of the two in the middle; not a number if there are none.
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

/// A target's figure against the first target's.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Ratio {
    /// Of the medians over the rounds.
    pub of_medians: f64,
    /// The least that any round gave.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Ratio {
    /// Of one figure a round to another; rounds belong together by their order.
    #[must_use]
    pub fn of(figures: &[f64], base: &[f64]) -> Self {
        let rounds = || figures.iter().zip(base).map(|(figure, base)| figure / base);
        Self {
            of_medians: median(figures.iter().copied()) / median(base.iter().copied()),
            least: rounds().fold(f64::INFINITY, f64::min),
            most: rounds().fold(f64::NEG_INFINITY, f64::max),
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
    fn a_ratio_is_of_medians_and_shows_how_rounds_vary() {
        let ratio = Ratio::of(&[10.0, 30.0, 20.0], &[10.0, 10.0, 5.0]);
        assert_eq!(ratio, Ratio { of_medians: 2.0, least: 1.0, most: 4.0 });
    }
}
