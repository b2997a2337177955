//! From a row of scores to predictions.

use schemars::JsonSchema;
use serde::Serialize;

use crate::softmax::softmax;
use ghostserve_manifest::{Label, OutputKind};

/// Predictions per image if the client sets no number.
const DEFAULT_TOP_K: usize = 5;

/// A class and its probability.
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

/// Which predictions an image gets.
#[derive(Clone, Copy, Debug)]
pub struct PredictionOptions {
    /// Maximum number of predictions.
    pub top_k: usize,
    /// Minimum probability of a prediction.
    pub min_confidence: f32,
}

impl PredictionOptions {
    /// The options of a request that sets none, for a model with so many classes.
    #[must_use]
    pub fn default_for(classes: usize) -> Self {
        Self { top_k: DEFAULT_TOP_K.min(classes), min_confidence: 0.0 }
    }
}

/// Turns a row of scores into the `top_k` most probable classes that have at least `min_confidence`.
#[must_use]
pub fn predict(scores: Vec<f32>, kind: OutputKind, labels: &[Label], options: PredictionOptions) -> Vec<Prediction> {
    let scores = probabilities(scores, kind);
    top(&scores, options.top_k, options.min_confidence)
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

/// The indices of the `k` highest scores that are at least `min_score`, highest first; equal ones in the order of
/// classes.
#[must_use]
pub fn top(scores: &[f32], k: usize, min_score: f32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).filter(|&i| scores[i] >= min_score).collect();
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
    fn the_best_come_first_and_ties_in_class_order() {
        let scores = [0.1, 0.4, 0.1, 0.4];
        assert_eq!(top(&scores, 3, 0.0), [1, 3, 0]);
        assert_eq!(top(&scores, 4, 0.2), [1, 3]);
        assert_eq!(top(&scores, 9, 0.0), [1, 3, 0, 2]);
    }
}
