//! The constants of the inverse DCTs, in fixed point.

/// Bits of fraction of the constants.
pub(super) const FRACTION: u32 = 13;
/// Bits between the two passes beyond those of an integer.
const EXTRA: u32 = 2;

/// Number of bits by which the sums of each pass are shifted down. The second pass also divides by 8, because each pass
/// yields sqrt(8) times the DCT.
pub(super) const COLUMN_SHIFT: u32 = FRACTION - EXTRA;
pub(super) const ROW_SHIFT: u32 = FRACTION + EXTRA + 3;

/// The same shifts for the reduced transforms to 4 and to 2 values. Each time there are half as many values of twice
/// the size, so that the shift grows by 1.
pub(super) const COLUMN_SHIFT_4: u32 = COLUMN_SHIFT + 1;
pub(super) const ROW_SHIFT_4: u32 = ROW_SHIFT + 1;
pub(super) const COLUMN_SHIFT_2: u32 = COLUMN_SHIFT + 2;
pub(super) const ROW_SHIFT_2: u32 = ROW_SHIFT + 2;

// The constants of the full transform, named by their value, times 2^13. Each is sqrt(2) times a sum of cosines of
// multiples of pi/16.
pub(super) const F0_298: i16 = 2446;
pub(super) const F0_390: i16 = 3196;
pub(super) const F0_541: i16 = 4433;
pub(super) const F0_765: i16 = 6270;
pub(super) const F0_899: i16 = 7373;
pub(super) const F1_175: i16 = 9633;
pub(super) const F1_501: i16 = 12299;
pub(super) const F1_847: i16 = 15137;
pub(super) const F1_961: i16 = 16069;
pub(super) const F2_053: i16 = 16819;
pub(super) const F2_562: i16 = 20995;
pub(super) const F3_072: i16 = 25172;

// The weights of the frequencies in the reduced transforms, times 2^13: of the even frequencies 2 and 6, of the odd
// frequencies 1, 3, 5 and 7, in this order.

/// Of four values: what the even frequencies add to the outer two and subtract from the inner two.
pub(super) const FOUR_EVEN: [i16; 2] = [15137, -6270];
/// Of four values: what the odd frequencies add to the first and subtract from the last.
pub(super) const FOUR_OUTER: [i16; 4] = [20995, 7373, -4926, -4176];
/// Of four values: what the odd frequencies add to the second and subtract from the third.
pub(super) const FOUR_INNER: [i16; 4] = [8697, -17799, 11893, -1730];
/// Of two values: what the odd frequencies add to the first and subtract from the second. The even ones cancel.
pub(super) const TWO_ODD: [i16; 4] = [29692, -10426, 6967, -5906];
