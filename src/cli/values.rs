//! Values that only subcommands other than `serve` take.

/// Parses the size of an image: `224`, or height and width as `320x416`.
pub(super) fn image_size(text: &str) -> Result<[usize; 2], String> {
    let side = |text: &str| match text.trim().parse() {
        Ok(side @ 1..=4096) => Ok(side),
        _ => Err(format!("expected 1 to 4096 pixels, as 224 or HEIGHTxWIDTH, found `{text}`")),
    };
    let (height, width) = text.split_once('x').unwrap_or((text, text));
    Ok([side(height)?, side(width)?])
}

/// Parses a number for each of R, G and B: `0.485,0.456,0.406`, or one number for all three.
pub(super) fn three_numbers(text: &str) -> Result<[f32; 3], String> {
    let numbers: Result<Vec<f32>, _> = text.split(',').map(|number| number.trim().parse::<f32>()).collect();
    match numbers.as_deref() {
        Ok([one]) if one.is_finite() => Ok([*one; 3]),
        Ok(&[r, g, b]) if [r, g, b].iter().all(|number| number.is_finite()) => Ok([r, g, b]),
        _ => Err(format!("expected three numbers with commas, as 0.485,0.456,0.406, found `{text}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stands_for_three() {
        assert_eq!(three_numbers("0.5"), Ok([0.5; 3]));
        assert_eq!(three_numbers("0.1, 0.2,0.3"), Ok([0.1, 0.2, 0.3]));
        for text in ["", "0.1,0.2", "a", "nan", "1,2,3,4"] {
            assert!(three_numbers(text).is_err(), "{text}");
        }
    }

    #[test]
    fn images_are_square_unless_two_sides_are_given() {
        assert_eq!(image_size("224"), Ok([224, 224]));
        assert_eq!(image_size("320x416"), Ok([320, 416]));
        assert!(image_size("0").is_err());
        assert!(image_size("1x2x3").is_err());
        assert!(image_size("99999").is_err());
    }
}
