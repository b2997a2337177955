//! Tests of the whole decoder and of its bit reader and Huffman tables. Reference pixels are from Pillow 13 with
//! libjpeg-turbo 3.

use super::bits::BitReader;
use super::huffman::{HuffmanTable, TableClass, TableSpec};
use super::{Decoded, Jpeg, JpegError, Scale};

/// Gray, 9 by 5, baseline.
const GRAY: &str = "\
     ffd8ffe000104a46494600010100000100010000ffdb0043000d090a0b0a080d0b0a0b0e0e0d0f13201513121213271c1e17 \
     202e2931302e292d2c333a4a3e333646372c2d405741464c4e525352323e5a615a50604a51524fffc0000b08000500090101 \
     1100ffc4001500010100000000000000000000000000000405ffc40023100001030302070000000000000000000002010311 \
     0004050621121651546193d2ffda0008010100003f004b3676f83d39719365a171c6447804b649524149f09331b4f54a9fce \
     f95ed31be93fbaffd9";

/// The pixels that Pillow decodes from [`GRAY`].
const GRAY_PIXELS: [u8; 45] = [
    0, 56, 76, 59, 109, 142, 148, 185, 203, 50, 77, 67, 105, 152, 149, 179, 216, 232, 73, 95, 105, 177, 176, 154, 202,
    216, 248, 120, 108, 159, 173, 147, 255, 244, 11, 23, 124, 168, 179, 189, 255, 223, 5, 67, 56,
];

/// Colour with 4:2:0 sampling, 19 by 18, baseline with a restart marker after each MCU.
const COLOUR: &str = "\
     ffd8ffe000104a46494600010100000100010000ffdb004300140e0f120f0d14121012171514181e32211e1c1c1e3d2c2e24 \
     3249404c4b47404645505a736250556d5645466488656d777b8182814e608d978c7d96737e817cffdb0043011517171e1a1e \
     3b21213b7c5346537c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c \
     7c7c7c7c7c7c7c7cffc00011080012001303012200021101031101ffc4001700010101010000000000000000000000000004 \
     0506ffc4001d100002020203010000000000000000000000010421036102113151ffc4001801000301010000000000000000 \
     000000000304050006ffc4001a110002030101000000000000000000000000040102121151ffdd00040001ffda000c030100 \
     02110311003f00e770c5d176187a2ec117468e087a16aceccb35c3ffd09943af01bea2f14afa40162be9621b3fffd1b23a5f \
     0d38e9550026a92573ffd2e878a5d2a001cd4063ffd9";

/// The same coefficients, progressive.
const PROGRESSIVE: &str = "\
     ffd8ffe000104a46494600010100000100010000ffdb004300140e0f120f0d14121012171514181e32211e1c1c1e3d2c2e24 \
     3249404c4b47404645505a736250556d5645466488656d777b8182814e608d978c7d96737e817cffdb0043011517171e1a1e \
     3b21213b7c5346537c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c7c \
     7c7c7c7c7c7c7c7cffc20011080012001303012200021101031101ffc4001800010003010000000000000000000000000003 \
     040501ffc4001801000203000000000000000000000000000204000305ffda000c03010002100310000001ce9e7b154aad01 \
     391590323a127bffc4001810000301010000000000000000000000000001021210ffda000801010001050252283029141924 \
     9e7fffc40017110101010100000000000000000000000003001013ffda0008010301013f0135bac79fffc400191100020301 \
     000000000000000000000000000103101121ffda0008010201013f015d311157ffc400141001000000000000000000000000 \
     00000030ffda0008010100063f021fffc4001810000203000000000000000000000000000001101120ffda0008010100013f \
     21cf3ab223ffda000c030100020003000000101b273effc40017110003010000000000000000000000000000011011ffda00 \
     08010301013f10c856ffc40017110003010000000000000000000000000000011061ffda0008010201013f1063b423ffc400 \
     1a100002030101000000000000000000000000011121613151ffda0008010100013f10c0c054e1919090ae108bc115508a15 \
     1fffd9";

/// FNV-1a of the pixels that Pillow decodes from [`COLOUR`] and from [`PROGRESSIVE`].
const COLOUR_HASH: u64 = 0x5b51847e02416dcc;

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.bytes().filter_map(|c| char::from(c).to_digit(16)).collect::<Vec<_>>();
    digits.as_chunks::<2>().0.iter().map(|[high, low]| (high * 16 + low) as u8).collect()
}

fn decode(file: &[u8]) -> Result<Decoded, JpegError> {
    Jpeg::open(file)?.decode()
}

fn decode_at(scale: Scale, file: &[u8]) -> Result<Decoded, JpegError> {
    let mut jpeg = Jpeg::open(file)?;
    jpeg.reduce(scale);
    jpeg.decode()
}

fn hash(pixels: &[u8]) -> u64 {
    pixels.iter().fold(0xCBF2_9CE4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01B3))
}

#[test]
fn pixels_are_those_of_pillow() {
    assert_eq!(decode(&bytes(GRAY)), Ok(Decoded::Gray(GRAY_PIXELS.to_vec())));
    for (name, file) in [("baseline", COLOUR), ("progressive", PROGRESSIVE)] {
        let decoded = decode(&bytes(file));
        let Ok(Decoded::Rgb(pixels)) = decoded else { panic!("{name}: {decoded:?}") };
        assert_eq!((pixels.len(), hash(&pixels)), (19 * 18 * 3, COLOUR_HASH), "{name}");
    }
}

/// Decodes each reference file of `tests/goldens/make_scaled.py` at each scale.
#[test]
fn reduced_pixels_are_those_of_pillow() {
    #[derive(serde::Deserialize)]
    struct Record {
        file: String,
        denominator: u32,
        width: u32,
        height: u32,
        pixels: String,
    }
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
    let records: Vec<Record> =
        serde_json::from_str(include_str!("../../../tests/goldens/scaled.json")).expect("it is JSON");
    assert!(records.len() >= 120);
    for Record { file, denominator, width, height, pixels } in records {
        let bytes = std::fs::read(folder.join(&file)).expect("it is there");
        let scale = Scale::ALL.into_iter().find(|scale| scale.factor() * f64::from(denominator) == 1.0);
        let mut jpeg = Jpeg::open(&bytes).expect("its header is in order");
        jpeg.reduce(scale.expect("there are no others"));
        assert_eq!(jpeg.scaled_size(), (width, height), "{file}, 1/{denominator}");
        let (Decoded::Gray(found) | Decoded::Rgb(found)) = jpeg.decode().expect("it is in order");
        assert_eq!(format!("{:016x}", hash(&found)), pixels, "{file}, 1/{denominator}");
    }
}

#[test]
fn a_reduced_image_takes_less_memory() {
    for file in [GRAY, COLOUR, PROGRESSIVE] {
        let mut file = bytes(file);
        // Large enough that the tables do not matter.
        let frame = file.windows(2).position(|w| w == [0xFF, 0xC0] || w == [0xFF, 0xC2]).expect("a frame");
        file[frame + 5..frame + 9].copy_from_slice(&[0x10, 0x00, 0x10, 0x00]);
        let bytes = Scale::ALL.map(|scale| {
            let mut jpeg = Jpeg::open(&file).expect("its header is in order");
            jpeg.reduce(scale);
            jpeg.working_bytes()
        });
        assert!(bytes.is_sorted_by(|a, b| a < b), "{bytes:?}");
        let jpeg = Jpeg::open(&file).expect("its header is in order");
        assert_eq!(bytes[3], jpeg.working_bytes());
    }
}

#[test]
fn the_header_is_read_without_decoding() {
    let file = bytes(PROGRESSIVE);
    let jpeg = Jpeg::open(&file).expect("it is a JPEG file");
    assert_eq!((jpeg.size(), jpeg.components(), jpeg.frame.progressive), ((19, 18), 3, true));
    assert_eq!(jpeg.exif(), None);
    // The output, the coefficients, and two rows of MCUs of samples: more than the first two together.
    assert!(jpeg.working_bytes() > 19 * 18 * 3 + 32 * 32 * 3, "{}", jpeg.working_bytes());
}

#[test]
fn the_largest_size_does_not_overflow() {
    for file in [GRAY, COLOUR, PROGRESSIVE] {
        let mut file = bytes(file);
        let frame = file.windows(2).position(|w| w == [0xFF, 0xC0] || w == [0xFF, 0xC2]).expect("a frame");
        file[frame + 5..frame + 9].fill(0xFF);
        let jpeg = Jpeg::open(&file).expect("its header is in order");
        assert_eq!(jpeg.size(), (65_535, 65_535));
        assert!(jpeg.working_bytes() >= 65_535 * 65_535 * jpeg.components() as u64);
    }
}

#[test]
fn a_truncated_file_is_an_error() {
    for file in [GRAY, COLOUR, PROGRESSIVE] {
        let file = bytes(file);
        // The last two bytes are the end marker, which may be missing.
        for length in 0..file.len() - 2 {
            for scale in Scale::ALL {
                assert!(decode_at(scale, &file[..length]).is_err(), "{length} of {}, {scale:?}", file.len());
            }
        }
        assert!(decode(&file[..file.len() - 2]).is_ok());
        // A scan that ends early is an error, too, where the file continues.
        let mut short = file[..file.len() - 4].to_vec();
        short.extend([0xFF, 0xD9]);
        assert_eq!(decode(&short), Err(JpegError::Truncated));
    }
}

#[test]
fn damaged_files_do_not_panic() {
    for file in [GRAY, COLOUR, PROGRESSIVE] {
        let file = bytes(file);
        for index in 0..file.len() {
            for flip in [0x01, 0x10, 0x80, 0xFF] {
                let mut damaged = file.clone();
                damaged[index] ^= flip;
                for scale in Scale::ALL {
                    if let Ok(mut jpeg) = Jpeg::open(&damaged)
                        && jpeg.working_bytes() < 1 << 22
                    {
                        jpeg.reduce(scale);
                        let (width, height) = jpeg.scaled_size();
                        if let Ok(Decoded::Gray(pixels) | Decoded::Rgb(pixels)) = jpeg.decode() {
                            assert_eq!(pixels.len() % (width * height) as usize, 0);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn bits_are_read_up_to_a_marker() {
    // A stuffed byte, fill bytes before another, and more bytes than one refill takes.
    let data = [0x12, 0xFF, 0x00, 0x34, 0xFF, 0xFF, 0x00, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xFF, 0xD9, 0xAA];
    let mut bits = BitReader::new(&data, 0);
    let mut read = Vec::new();
    for _ in 0..13 {
        bits.ensure_32();
        read.push(bits.take(8) as u8);
    }
    assert_eq!(read, [0x12, 0xFF, 0x34, 0xFF, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(bits.check_overrun(), Ok(()));
    assert!(!bits.take_bit());
    assert_eq!(bits.check_overrun(), Err(JpegError::Truncated));
    assert_eq!(bits.finish(), Err(JpegError::Truncated));
}

#[test]
fn signed_numbers_follow_the_standard() {
    // Three bits each: 011 is -4, 100 is 4, 000 is -7, 111 is 7; then a number of no bits.
    let data = [0b0111_0000, 0b0111_0000];
    let mut bits = BitReader::new(&data, 0);
    bits.ensure_32();
    assert_eq!([3, 3, 3, 3, 0].map(|size| bits.take_signed(size)), [-4, 4, -7, 7, 0]);
}

#[test]
fn invalid_huffman_tables_are_rejected() {
    let build = |codes: &[(usize, u8)], values: &[u8], class| {
        let mut counts = [0; 16];
        codes.iter().for_each(|&(length, count)| counts[length - 1] = count);
        HuffmanTable::build(&TableSpec { counts, values }, class).map(|_| ())
    };
    assert_eq!(build(&[(1, 1), (2, 2)], &[1, 2, 3], TableClass::Dc), Ok(()));
    assert!(build(&[(1, 3)], &[1, 2, 3], TableClass::Dc).is_err());
    assert!(build(&[(1, 2), (16, 1)], &[1, 2, 3], TableClass::Ac).is_err());
    assert!(build(&[(2, 1)], &[16], TableClass::Dc).is_err());
    assert_eq!(build(&[(2, 1)], &[16], TableClass::Ac), Ok(()));
    assert!(build(&[(2, 2)], &[1], TableClass::Ac).is_err());
}

#[test]
fn long_huffman_codes_are_found_and_undefined_ones_rejected() {
    // One code each of 1, 2 and so on up to 16 bits: 0, 10, 110 ...
    let values = (0..16).map(|n| n * 16).collect::<Vec<u8>>();
    let spec = TableSpec { counts: [1; 16], values: &values };
    let table = HuffmanTable::build(&spec, TableClass::Ac).unwrap_or_else(|e| panic!("{e}"));
    for length in 1..=16u32 {
        let code = (0xFFFF_u32 << (17 - length)) as u16;
        // A byte FF needs a stuffed zero.
        let data = code.to_be_bytes().into_iter().flat_map(|b| if b == 0xFF { vec![b, 0] } else { vec![b] });
        let data = data.collect::<Vec<_>>();
        let mut bits = BitReader::new(&data, 0);
        bits.ensure_32();
        assert_eq!(table.symbol(&mut bits), Ok(values[length as usize - 1]), "{length}");
    }
    let mut bits = BitReader::new(&[0xFF, 0, 0xFF, 0, 0], 0);
    bits.ensure_32();
    assert!(table.symbol(&mut bits).is_err());
}
