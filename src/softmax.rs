//! The softmax function.

/// Turns logits into probabilities, in place.
pub fn softmax(scores: &mut [f32]) {
    // The largest score becomes exp(0), so nothing overflows.
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = (*score - largest).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
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
}
