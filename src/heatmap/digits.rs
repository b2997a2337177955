//! Numbers as bitmaps, for the labels of a colour bar.

use image::{Rgb, RgbImage};

/// Width and height of a character, in cells of its bitmap.
const CELLS: [usize; 2] = [5, 7];

/// Draws a number with its left edge and its vertical middle at a position. A cell of a character is `scale` pixels
/// wide and high. What does not fit into the image is left out.
pub(super) fn draw_number(image: &mut RgbImage, text: &str, [left, middle]: [u32; 2], scale: u32, colour: Rgb<u8>) {
    let top = middle.saturating_sub(CELLS[1] as u32 * scale / 2);
    let mut left = left;
    for character in text.chars() {
        for (y, row) in bitmap(character).into_iter().enumerate() {
            for x in (0..CELLS[0]).filter(|x| row >> (CELLS[0] - 1 - x) & 1 == 1) {
                for (dx, dy) in (0..scale * scale).map(|i| (i % scale, i / scale)) {
                    let at = (left + x as u32 * scale + dx, top + y as u32 * scale + dy);
                    if let Some(pixel) = image.get_pixel_mut_checked(at.0, at.1) {
                        *pixel = colour;
                    }
                }
            }
        }
        left += advance(character) * scale;
    }
}

/// The width of a number, in pixels.
pub(super) fn number_width(text: &str, scale: u32) -> u32 {
    text.chars().map(|character| advance(character) * scale).sum()
}

/// From the left edge of a character to that of the next one, in cells.
fn advance(character: char) -> u32 {
    if character == '.' { 4 } else { CELLS[0] as u32 + 1 }
}

/// The rows of a character from the top; the highest of five bits is the leftmost cell. Characters that numbers do not
/// have are empty.
fn bitmap(character: char) -> [u8; 7] {
    match character {
        '0' => [0b01110, 0b10001, 0b10001, 0b10001, 0b10001, 0b10001, 0b01110],
        '1' => [0b00100, 0b01100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110],
        '2' => [0b01110, 0b10001, 0b00001, 0b00110, 0b01000, 0b10000, 0b11111],
        '3' => [0b11110, 0b00001, 0b00001, 0b01110, 0b00001, 0b00001, 0b11110],
        '4' => [0b00010, 0b00110, 0b01010, 0b10010, 0b11111, 0b00010, 0b00010],
        '5' => [0b11111, 0b10000, 0b11110, 0b00001, 0b00001, 0b10001, 0b01110],
        '6' => [0b00110, 0b01000, 0b10000, 0b11110, 0b10001, 0b10001, 0b01110],
        '7' => [0b11111, 0b00001, 0b00010, 0b00100, 0b00100, 0b01000, 0b01000],
        '8' => [0b01110, 0b10001, 0b10001, 0b01110, 0b10001, 0b10001, 0b01110],
        '9' => [0b01110, 0b10001, 0b10001, 0b01111, 0b00001, 0b00010, 0b01100],
        '.' => [0, 0, 0, 0, 0, 0b01100, 0b01100],
        '-' => [0, 0, 0, 0b11111, 0, 0, 0],
        _ => [0; 7],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_drawn_inside_its_width() {
        let paper = Rgb([255; 3]);
        let mut image = RgbImage::from_pixel(80, 30, paper);
        draw_number(&mut image, "-0.61", [4, 15], 2, Rgb([0; 3]));
        let inked: Vec<_> = image.enumerate_pixels().filter(|(.., p)| **p != paper).map(|(x, y, _)| (x, y)).collect();
        let width = number_width("-0.61", 2);
        assert!(inked.iter().all(|(x, y)| (4..4 + width).contains(x) && (8..22).contains(y)), "{inked:?}");
        assert!(inked.len() > 100);
        // Every digit looks different.
        let all: std::collections::BTreeSet<_> = "0123456789.-".chars().map(bitmap).collect();
        assert_eq!(all.len(), 12);
        // What does not fit is left out.
        draw_number(&mut image, "88888888888888888888", [70, 29], 3, Rgb([0; 3]));
    }
}
