//! The block, the square of coefficients that the DCT works on (A.3).

/// Coefficients along each side of a block, and samples where the image is decoded at its full size.
pub(super) const BLOCK_SIDE: usize = 8;

/// Coefficients or samples of a block, row by row.
pub(super) type Block = [i16; 64];

/// For each position in zigzag order, the coefficient's position in its block (figure A.6).
pub(super) const ZIGZAG: [u8; 64] = zigzag();

const fn zigzag() -> [u8; 64] {
    let mut order = [0; 64];
    let (mut k, mut row, mut column) = (0, 0u8, 0u8);
    while k < 64 {
        order[k] = row * 8 + column;
        // Up and to the right on even diagonals, down and to the left on odd ones, turning at the sides.
        if (row + column) % 2 == 0 {
            if column == 7 {
                row += 1;
            } else {
                column += 1;
                row = row.saturating_sub(1);
            }
        } else if row == 7 {
            column += 1;
        } else {
            row += 1;
            column = column.saturating_sub(1);
        }
        k += 1;
    }
    order
}
