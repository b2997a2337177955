//! From a row of scores to predictions.

use schemars::JsonSchema;
use serde::Serialize;

use ghostserve_manifest::{Label, OutputKind};

/// A class and how probable it is.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Prediction {
    /// Index of the output.
    pub class: usize,
    /// Its label.
    #[serde(flatten)]
    pub label: Label,
    /// Between 0 and 1; those of all classes sum to 1.
    pub probability: f32,
}

/// Which predictions are wanted.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// At most so many.
    pub top_k: usize,
    /// None below this probability.
    pub min_confidence: f32,
}

/// Turns a row of scores into the `top_k` most probable classes that have at least `min_confidence`.
#[must_use]
pub fn predict(scores: Vec<f32>, kind: OutputKind, labels: &[Label], ask: Ask) -> Vec<Prediction> {
    let scores = probabilities(scores, kind);
    top(&scores, ask.top_k, ask.min_confidence)
        .into_iter()
        .map(|class| Prediction { class, label: labels[class].clone(), probability: scores[class] })
        .collect()
}

/// Turns a row of scores into the probabilities of all classes.
#[must_use]
pub fn probabilities(mut scores: Vec<f32>, kind: OutputKind) -> Vec<f32> {
    if kind == OutputKind::Logits {
        softmax(&mut scores);
    }
    scores
}

/// Turns logits into probabilities, in place.
fn softmax(scores: &mut [f32]) {
    // The largest becomes exp(0): nothing overflows.
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|s| *s = (*s - largest).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|s| *s /= sum);
}

/// The indices of the `k` highest scores that are at least `least`, highest first; equal ones in the order of classes.
#[must_use]
pub fn top(scores: &[f32], k: usize, least: f32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).filter(|&i| scores[i] >= least).collect();
    let descending = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
    if k < order.len() {
        order.select_nth_unstable_by(k, descending);
        order.truncate(k);
    }
    order.sort_unstable_by(descending);
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_sums_to_one_even_for_huge_logits() {
        let mut scores = vec![1000.0, 999.0, -1000.0];
        softmax(&mut scores);
        assert!((scores.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((scores[0] - 0.731_058_6).abs() < 1e-6, "{scores:?}");
    }

    #[test]
    fn the_best_come_first_and_ties_in_class_order() {
        let scores = [0.1, 0.4, 0.1, 0.4];
        assert_eq!(top(&scores, 3, 0.0), [1, 3, 0]);
        assert_eq!(top(&scores, 4, 0.2), [1, 3]);
        assert_eq!(top(&scores, 9, 0.0), [1, 3, 0, 2]);
    }
}
