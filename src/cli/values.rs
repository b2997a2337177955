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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_square_unless_two_sides_are_given() {
        assert_eq!(image_size("224"), Ok([224, 224]));
        assert_eq!(image_size("320x416"), Ok([320, 416]));
        assert!(image_size("0").is_err());
        assert!(image_size("1x2x3").is_err());
        assert!(image_size("99999").is_err());
    }
}
