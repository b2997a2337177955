//! The colour map: viridis.
//!
//! Equal steps of a value are equal steps of perceived brightness, and the order is kept in greyscale and for people
//! who see no red or no green.

use image::Rgb;

/// Every fifth of the 256 colours of viridis, from the darkest to the brightest.
const VIRIDIS: [[u8; 3]; 52] = [
    [68, 1, 84],
    [70, 8, 92],
    [71, 16, 99],
    [72, 23, 105],
    [72, 29, 111],
    [72, 36, 117],
    [71, 42, 122],
    [70, 48, 126],
    [69, 55, 129],
    [67, 61, 132],
    [65, 66, 135],
    [63, 72, 137],
    [61, 78, 138],
    [58, 83, 139],
    [56, 89, 140],
    [53, 94, 141],
    [51, 99, 141],
    [49, 104, 142],
    [46, 109, 142],
    [44, 113, 142],
    [42, 118, 142],
    [41, 123, 142],
    [39, 128, 142],
    [37, 132, 142],
    [35, 137, 142],
    [33, 142, 141],
    [32, 146, 140],
    [31, 151, 139],
    [30, 156, 137],
    [31, 161, 136],
    [33, 165, 133],
    [36, 170, 131],
    [40, 174, 128],
    [46, 179, 124],
    [53, 183, 121],
    [61, 188, 116],
    [70, 192, 111],
    [80, 196, 106],
    [90, 200, 100],
    [101, 203, 94],
    [112, 207, 87],
    [124, 210, 80],
    [137, 213, 72],
    [149, 216, 64],
    [162, 218, 55],
    [176, 221, 47],
    [189, 223, 38],
    [202, 225, 31],
    [216, 226, 25],
    [229, 228, 25],
    [241, 229, 29],
    [253, 231, 37],
];

/// The colour of a fraction between 0 (dark) and 1 (bright). A fraction outside has the colour of the nearest end.
pub(super) fn colour_at(fraction: f32) -> Rgb<u8> {
    let position = fraction.clamp(0.0, 1.0) * (VIRIDIS.len() - 1) as f32;
    let below = (position as usize).min(VIRIDIS.len() - 2);
    let rest = position - below as f32;
    let [a, b] = [VIRIDIS[below], VIRIDIS[below + 1]];
    Rgb(std::array::from_fn(|c| (f32::from(a[c]) + (f32::from(b[c]) - f32::from(a[c])) * rest).round() as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_higher_value_is_a_brighter_colour() {
        // Luminance by the weights of Rec. 709.
        let light = |i: u16| {
            let Rgb([r, g, b]) = colour_at(f32::from(i) / 1000.0);
            0.2126 * f32::from(r) + 0.7152 * f32::from(g) + 0.0722 * f32::from(b)
        };
        assert!((1..=1000).all(|i| light(i) >= light(i - 1) - 0.5), "rising");
        assert!(light(1000) > light(0) + 180.0);
        assert_eq!([colour_at(-1.0), colour_at(2.0)], [Rgb(VIRIDIS[0]), Rgb(VIRIDIS[51])]);
    }
}
