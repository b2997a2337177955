//! The marker codes of a JPEG file, and the search for the next one (B.1.1.2).

pub(super) const SOF0: u8 = 0xC0;
pub(super) const SOF2: u8 = 0xC2;
pub(super) const SOF3: u8 = 0xC3;
pub(super) const SOF15: u8 = 0xCF;
pub(super) const DHT: u8 = 0xC4;
pub(super) const JPG: u8 = 0xC8;
pub(super) const DAC: u8 = 0xCC;
pub(super) const RST0: u8 = 0xD0;
pub(super) const RST7: u8 = 0xD7;
pub(super) const SOI: u8 = 0xD8;
pub(super) const EOI: u8 = 0xD9;
pub(super) const SOS: u8 = 0xDA;
pub(super) const DQT: u8 = 0xDB;
pub(super) const DRI: u8 = 0xDD;
pub(super) const APP0: u8 = 0xE0;
pub(super) const APP1: u8 = 0xE1;
pub(super) const APP14: u8 = 0xEE;
pub(super) const TEM: u8 = 0x01;

/// Finds the first marker at or after the byte `position`: its code, and the position of the byte after it.
///
/// Skips all bytes before it, as other decoders do: entropy-coded data, fill bytes, garbage.
pub(super) fn next(data: &[u8], mut position: usize) -> Option<(u8, usize)> {
    loop {
        position += data.get(position..)?.iter().position(|&b| b == 0xFF)?;
        match *data.get(position + 1)? {
            0xFF => position += 1,
            0x00 => position += 2,
            code => return Some((code, position + 2)),
        }
    }
}
