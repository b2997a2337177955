//! SIMD kernels on blocked feature maps, for which ONNX Runtime has no operator, or only a chain of them.
//!
//! Between two convolutions of a Ghost network are a depthwise convolution, a concatenation, an upsampling, a product
//! and a sum: little arithmetic, and five passes over memory. Here each such group is one pass. The functions read and
//! write slices of `f32`; they know no graphs and no sessions. GhostServe wraps them into operators of ONNX Runtime.
//!
//! # Layout
//!
//! A blocked map is stored as N × C/b × H × W × b (NCHWc): the `b` channels of a block are adjacent at each pixel. The
//! channels are padded to whole blocks and may be in any order; a position in that order is called a *slot*. `b` is the
//! first argument of every kernel, 8 or 16; [`native_block`] says which one ONNX Runtime uses on this processor.
//! [`reblock`] and [`unblock`] convert maps, `Layout` in the crate `ghostserve-ghostnet` packs weights.
//!
//! Every kernel is compiled for several instruction sets and selects the widest that this processor has.
//!
//! # Example
//!
//! ```
//! use ghostserve_kernels::{Gate, KernelError, gate};
//!
//! // One block of 8 channels, 1 by 2 pixels: 1 in every channel of the first pixel, 3 in the second.
//! let mut x = [1.0_f32; 16];
//! x[8..].fill(3.0);
//! // A gate of one pixel, by which both pixels are multiplied.
//! let factors = [0.5_f32; 8];
//! let operands = Gate { x: &x[..], gate: (&factors[..], [1, 1]), residual: None, planes: 1, size: [1, 2] };
//!
//! let mut out = [0.0_f32; 16];
//! gate(8, &operands, &mut out[..])?;
//! assert_eq!(out[..8], [0.5_f32; 8]);
//! assert_eq!(out[8..], [1.5_f32; 8]);
//!
//! let error = gate(8, &operands, &mut out[..8]).unwrap_err();
//! assert_eq!(error.to_string(), "output elements: expected 16, found 8");
//! # Ok::<(), KernelError>(())
//! ```

mod excite;
mod ghost;
mod lanes;
mod layout;
mod strips;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

pub use excite::{SqueezeExcite, squeeze_excite};
pub use ghost::{Gate, Ghost, gate, ghost};
pub use layout::{reblock, unblock};
pub use strips::{GateKind, Strips, strips};

use lanes::Lanes;

/// A size of an operand that does not match the other operands. The text names the operand and both sizes.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what}: expected {expected}, found {found}")]
pub struct KernelError {
    what: &'static str,
    expected: usize,
    found: usize,
}

/// Fails unless `found` is `expected`.
fn check(what: &'static str, expected: usize, found: usize) -> Result<(), KernelError> {
    if expected == found { Ok(()) } else { Err(KernelError { what, expected, found }) }
}

/// Number of channels per block in the layout that ONNX Runtime's convolutions use on this processor; `None` if they
/// use no blocked layout.
#[must_use]
pub fn native_block() -> Option<usize> {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return Some(16);
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Some(8);
        }
    }
    None
}

/// Height and width of a map, in pixels.
pub type MapSize = [usize; 2];

/// Declares the public function `$name`. It selects the instruction set for `block` channels per block, then calls
/// `$body`, which is generic over the lanes and is inlined into a function that may use the instructions.
macro_rules! kernel {
    ($(#[$doc:meta])* $name:ident => $body:ident($($argument:ident: $type:ty),*)) => {
        $(#[$doc])*
        pub fn $name(block: usize, $($argument: $type),*) -> Result<(), $crate::KernelError> {
            #[allow(unused_imports)]
            use $crate::lanes;
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn avx512($($argument: $type),*) -> Result<(), $crate::KernelError> {
                    $body::<16, lanes::x86::Zmm>($($argument),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($argument: $type),*) -> Result<(), $crate::KernelError> {
                    $body::<8, lanes::x86::Ymm>($($argument),*)
                }
                if block == 16 && is_x86_feature_detected!("avx512f") {
                    // SAFETY: the processor has the instructions.
                    #[allow(unsafe_code)]
                    return unsafe { avx512($($argument),*) };
                }
                if block == 8 && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the processor has the instructions.
                    #[allow(unsafe_code)]
                    return unsafe { avx2($($argument),*) };
                }
            }
            match block {
                8 => $body::<8, lanes::Portable<8>>($($argument),*),
                16 => $body::<16, lanes::Portable<16>>($($argument),*),
                _ => $crate::check("channels a block", 16, block),
            }
        }
    };
}
use kernel;
