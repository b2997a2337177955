//! Every channel of feature maps as a tile.

use image::{Rgb, RgbImage};

use super::ValueRange;
use super::colours::colour_at;

/// Smaller maps are enlarged, each element to a square, to at least this shorter side in pixels, unless the longer one
/// would exceed [`MAX_TILE`].
const MIN_TILE: usize = 48;
/// Maps are not enlarged beyond this longer side in pixels: the picture of narrow maps would take a hundred times their
/// memory.
const MAX_TILE: usize = 512;
/// Pixels between tiles.
const GAP: usize = 2;
const BACKGROUND: Rgb<u8> = Rgb([24, 24, 24]);

/// Draws each channel of channels × height × width maps as a tile, row by row. The colours of a tile range from the
/// channel's lowest to its highest value. A channel of one value is grey, which no colour of the map is.
#[must_use]
pub fn tiles(maps: &[f32], [channels, height, width]: [usize; 3]) -> RgbImage {
    let largest = (MAX_TILE / height.max(width).max(1)).max(1);
    let enlarge = MIN_TILE.div_ceil(height.min(width).max(1)).min(largest);
    let columns = (1..=channels).find(|n| n * n >= channels).unwrap_or(1);
    let rows = channels.div_ceil(columns);
    let offset = |count: usize, side: usize| (count * (side * enlarge + GAP) + GAP) as u32;
    let mut image = RgbImage::from_pixel(offset(columns, width), offset(rows, height), BACKGROUND);
    for (channel, map) in maps.chunks_exact((height * width).max(1)).take(channels).enumerate() {
        let (left, top) = (offset(channel % columns, width), offset(channel / columns, height));
        let range = ValueRange::of(map);
        for (y, line) in map.chunks_exact(width).enumerate() {
            for (x, value) in line.iter().enumerate() {
                let colour = if range.is_one_value() { CONSTANT } else { colour_at(range.fraction(*value)) };
                for (dx, dy) in (0..enlarge * enlarge).map(|i| (i % enlarge, i / enlarge)) {
                    image.put_pixel(left + (x * enlarge + dx) as u32, top + (y * enlarge + dy) as u32, colour);
                }
            }
        }
    }
    image
}

/// The colour of a channel that has the same value everywhere.
const CONSTANT: Rgb<u8> = Rgb([64, 64, 64]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_has_its_own_tile_and_range() {
        // Three channels of 1×2: rising, falling by a thousandth, constant.
        let maps = [0.0, 1.0, 0.001, 0.0, 5.0, 5.0];
        let image = tiles(&maps, [3, 1, 2]);
        let (tile_w, tile_h) = (2 * 48 + 2, 48 + 2);
        assert_eq!(image.dimensions(), (2 * tile_w + 2, 2 * tile_h + 2));
        let at = |channel: u32, x: u32| {
            *image.get_pixel(2 + channel % 2 * tile_w + 48 * x + 20, 2 + channel / 2 * tile_h + 20)
        };
        let (dark, bright) = (colour_at(0.0), colour_at(1.0));
        assert_eq!([at(0, 0), at(0, 1)], [dark, bright]);
        assert_eq!([at(1, 0), at(1, 1)], [bright, dark]);
        assert_eq!([at(2, 0), at(2, 1)], [CONSTANT, CONSTANT]);
        assert_eq!(*image.get_pixel(tile_w + 20, tile_h + 20), BACKGROUND, "no fourth channel");
    }
}
